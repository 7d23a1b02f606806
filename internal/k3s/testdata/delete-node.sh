export LC_ALL=C PATH=/usr/local/bin:/usr/bin:/bin:/opt/bin
timeout -k 1 31 k3s kubectl delete node 'k3s-2' --ignore-not-found --timeout=30s
