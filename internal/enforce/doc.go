// SPDX-License-Identifier: Apache-2.0

// Package enforce keeps the kernel in step with the network policies that a source tells, and holds back a workload until those that concern it
// are in force.
//
// The way through it is that of a change: a source, such as the API server's watches or the mesh, puts objects into a batch
// ([Enforcer.Change], changes.go); the one goroutine of [Enforcer.Run] takes all that has gathered, says which endpoints there are from what the source says
// and from what this node has attached (endpoints.go), gives that to policy.World and compile.Compiler, and what they make of it to the kernel
// (apply.go). While that lasts the next batch gathers: a burst costs one commit, and a single change goes at once. [Enforcer.Admit] waits for the
// commit that its workload is part of (admit.go). saved.go keeps on disk what the kernel was told last; seen.go says what was denied, and why.
//
// Invariants:
//
//   - Nothing is programmed before the source has told all that there was ([Enforcer.Synced]) and the node all that it has attached
//     ([Enforcer.Begin]). Until then the kernel has what an earlier run gave it, as it was kept on disk, and is guarded.
//   - What is kept on disk is never given to a kernel that has something newer.
//   - Admit succeeds only if all that policies say of the workload's addresses is in the kernel, or they say nothing of it and the kernel does not
//     know the addresses as another's; if all that they depend on is followed ([Enforcer.Behind]); and if its namespace is known (spaces.go).
//   - Of what is attached here, addresses are known from the node alone. It keeps its last known labels until it is detached,
//     whatever becomes of the object that it was made from, so that it is never open in the meantime.
//   - An object of the same name and another ID is another one: it does not take over what the first has attached.
//   - Without a policy that concerns this node there is nothing in the kernel, and nothing on disk.
//
// The kernel is seen as a [Kernel]. internal/node makes the one Enforcer of a node; internal/kube and internal/api see its words.
package enforce
