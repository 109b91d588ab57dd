# Sourced by scripts that take a cluster for themselves.
#
#   own_cluster NAME [OPTION of `cluster up`...]
#
# Sets KUBECONFIG. The cluster goes when the script ends, however it ends; KEEP=1 leaves it for a look.

own_cluster() {
    cluster=$1
    # One that was left by a killed run is of older programs.
    e2e/cluster/cluster down --name "$cluster"
    trap end_own_cluster EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    KUBECONFIG=$(e2e/cluster/cluster up --name "$@" | tail -n 1)
    export KUBECONFIG
}

end_own_cluster() {
    local status=$?
    trap - EXIT INT TERM
    if [ -n "${KEEP:-}" ]; then
        echo "${0##*/}: cluster $cluster stays; make cluster-down NAME=$cluster" >&2
    else
        e2e/cluster/cluster down --name "$cluster" || status=1
    fi
    exit "$status"
}
