#!/usr/bin/env bash
# Set a node up: `setup.sh SERVER:/EXPORT` mounts the shared storage and installs requirements.lock beside this checkout.
# Run by `ray up` on every node, as often as it likes: what is there already is left as it is.
# Checked: shellcheck. Never run on a cloud's machine.
set -euo pipefail

export_of_storage=${1:?"usage: setup.sh SERVER:/EXPORT"}
mount_path=/mnt/raydino
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

sudo apt-get update -qq
sudo DEBIAN_FRONTEND=noninteractive apt-get install -y -qq make python3-venv nfs-common

sudo mkdir -p "$mount_path"
if ! mountpoint -q "$mount_path"; then
  # hard: a server that is away makes a save wait; soft would hand the run half a checkpoint.
  sudo mount -t nfs4 -o hard,timeo=600,retrans=2,noresvport "$export_of_storage" "$mount_path"
fi
mkdir -p "$mount_path/runs" 2> /dev/null || sudo install -d -o "$(id -u)" -g "$(id -g)" "$mount_path/runs"

make -C "$checkout" setup

if ! grep -qF "$checkout/.venv/bin" ~/.bashrc; then # for `ray exec` and `ray attach`
  {
    echo "export PATH=$checkout/.venv/bin:\$PATH RAY_AUTH_MODE=token"
    echo "if [ -f $mount_path/mlflow.env ]; then set -a; . $mount_path/mlflow.env; set +a; fi"
  } >> ~/.bashrc
fi
