# Install the pinned torch first, and stop before it brings gigabytes of CUDA libraries to a machine without an NVIDIA
# GPU. PIP is the pip command to install with; CUDA=1 means that they are wanted.
set -e
case "$CUDA" in
  1) ;;
  *)
    if ! command -v nvidia-smi >/dev/null 2>&1; then
      wanted=$($PIP --dry-run --report - torch 2>/dev/null | grep -c '"name": "\(nvidia-\|cuda-\)' || true)
      if [ "$wanted" -gt 0 ]; then
        echo "The torch that pip would install here brings $wanted packages of CUDA libraries (gigabytes), and this"
        echo "machine shows no NVIDIA GPU. Choose the CPU build's index on pytorch.org and give it to pip, as in"
        echo "  make demo PIP_ARGS='--index-url <the CPU index>'"
        echo "or install with CUDA all the same: make demo CUDA=1"
        exit 1
      fi
    fi
    ;;
esac
echo "Installing torch ..."
$PIP torch
