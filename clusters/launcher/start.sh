#!/usr/bin/env bash
# Start Ray on a node, with token authentication: `start.sh head` and `start.sh worker HEAD_IP`. Run by `ray up`.
# Checked: shellcheck; `head` run on one machine: the dashboard listens on 127.0.0.1 alone, answers 401 without the token and 200 with it.
# `worker` never run, and neither on a cloud's machine.
set -euo pipefail

role=${1:?"usage: start.sh head | start.sh worker HEAD_IP"}
export PATH=$HOME/raydino/.venv/bin:$PATH
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$HOME/.ray/auth_token
export RAY_USAGE_STATS_ENABLED=0
[[ -s $RAY_AUTH_TOKEN_PATH ]] || { echo "$RAY_AUTH_TOKEN_PATH is empty: run \`ray get-auth-token --generate\` before \`ray up\`" >&2; exit 1; }
chmod 600 "$RAY_AUTH_TOKEN_PATH"
# MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD; training workers inherit them from Ray.
if [[ -f /mnt/raydino/mlflow.env ]]; then
  set -a
  # shellcheck source=/dev/null
  source "/mnt/raydino/mlflow.env"
  set +a
fi

ulimit -n 65536 2> /dev/null || ulimit -n "$(ulimit -Hn)" # Ray holds a socket for each worker and client
ray stop
case $role in
  # The dashboard also takes jobs, so it answers on the head alone; `ray dashboard` tunnels to it through SSH.
  head) ray start --head --port=6379 --object-manager-port=8076 --dashboard-host=127.0.0.1 \
          --autoscaling-config="$HOME/ray_bootstrap_config.yaml" ;;
  worker) ray start --address="${2:?"usage: start.sh worker HEAD_IP"}:6379" --object-manager-port=8076 ;;
  *) echo "unknown role $role: head or worker" >&2; exit 2 ;;
esac
