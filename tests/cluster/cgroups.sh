# Sourced: the control groups of all pods lie below /$CGROUP, apart from those of a real kubelet on the same machine, so that
# whatever runs in them is ours to end.

# cgroup_roots: one folder a hierarchy: version 2 has one, version 1 one for each controller.
cgroup_roots() { awk '$3 == "cgroup" || $3 == "cgroup2" {print $2}' /proc/mounts | sort -u; }

make_cgroups() {
  local root
  for root in $(cgroup_roots); do
    mkdir -p "$root/$CGROUP"
    if [ -e "$root/cgroup.subtree_control" ]; then
      # One at a time: a controller that can't be handed on must not stop the others.
      for controller in $(cat "$root/cgroup.controllers"); do echo "+$controller" >"$root/cgroup.subtree_control" 2>/dev/null || true; done
    fi
    # Version 1 gives a new cpuset no processor and no memory node, so that nothing could run in it.
    for file in cpuset.mems cpuset.cpus; do
      if [ -e "$root/$CGROUP/$file" ] && [ -z "$(cat "$root/$CGROUP/$file")" ]; then cat "$root/$file" >"$root/$CGROUP/$file"; fi
    done
  done
}

# pod_processes: the ids of all processes in pods.
pod_processes() {
  local root
  for root in $(cgroup_roots); do
    [ ! -d "$root/$CGROUP" ] || find "$root/$CGROUP" -name cgroup.procs -exec cat {} + 2>/dev/null || true
  done | sort -un
}

remove_cgroups() {
  local root
  for root in $(cgroup_roots); do
    [ ! -d "$root/$CGROUP" ] || find "$root/$CGROUP" -depth -type d -exec rmdir {} + 2>/dev/null || true
  done
}
