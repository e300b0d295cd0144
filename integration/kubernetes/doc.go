// SPDX-License-Identifier: Apache-2.0

// Package kubernetes runs a real Kubernetes cluster on one Linux machine and tries Weft in it, by the image and the manifest that users get: etcd,
// the control plane, and nodes that are sets of namespaces (network, mount, pid, uts, ipc), each with a containerd, a kubelet and a kube-proxy of its own.
// No registry is asked; nodes have their images from tarballs. The hosts' network is that of integration/lab, with its faults and captures.
//
// `make e2e` builds what is missing (the command in build/, ten minutes at first), and runs the tests, which have the build tag e2e. They need
// root, util-linux, runc, iptables, Debian's apt and dpkg-deb for the first build, and about 3 GiB of memory for five nodes.
//
// What a cluster makes ends with the test, as everything of a lab does; only its logs stay, in the directory that WEFT_E2E_LOGS names. The first process
// of a node dies with the test, and takes along what runs in the node; folders in the cgroup hierarchies are removed last.
//
// It is a module of its own, so that Kubernetes does not count among Weft's libraries, and knows Weft as a built image only.
package kubernetes
