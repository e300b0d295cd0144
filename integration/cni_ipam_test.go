// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"

	"github.com/weftnet/weft/integration/lab"
)

// TestCNIIPAM has the reference plugin ptp make the interfaces, with addresses of Weft's, and talks across hosts, to containers of either kind.
func TestCNIIPAM(t *testing.T) {
	t.Parallel()
	hosts := cniMesh(t, 2)
	clean := []before{noted(t, hosts[0].Host), noted(t, hosts[1].Host)}
	ptp := func(h *cniHost, v string) keys {
		return keys{"type": "ptp", "mtu": ask[status](t, h.Host, "status").MTU, "ipam": h.weftConf()}
	}
	var workloads []*lab.Workload
	var pods []*pod
	for i, h := range hosts {
		n := network(t, newest, "ptp", ptp(h, newest))
		if err := h.status(n); err != nil {
			t.Error(err)
		}
		p := h.added(n, fmt.Sprint("ptp", i))
		pods = append(pods, p)
		own := h.added(h.weft(), fmt.Sprint("own", i))
		workloads = append(workloads, p.Workload, own.Workload)
		pods = append(pods, own)
	}
	allReach(t, patience, workloads...)
	distinct(t, addrs(workloads...))
	ctx, cancel := context.WithTimeout(t.Context(), verbTimeout)
	defer cancel()
	for _, a := range workloads[2].Addrs() {
		if _, err := (&lab.Lab{}).Transfer(ctx, workloads[0].Namespace, workloads[2].Namespace, a, 4<<20); err != nil {
			t.Error(err)
		}
	}
	for i, h := range hosts {
		n := network(t, newest, "ptp", ptp(h, newest))
		if err := h.check(n, pods[2*i]); err != nil {
			t.Error(err)
		}
		// Past ptp, which does not pass it on: what is valid stays, the rest is released.
		conf := func(valid string) string {
			return replaceAll(t, `{"cniVersion": "1.1.0", "name": "ptp", "type": "ptp", "ipam": {"type": "weft", "runDir": "`+h.RunDir()+`"}, "cni.dev/valid-attachments": [VALID]}`, [2]string{"VALID", valid})
		}
		if k := h.raw(conf(fmt.Sprintf(`{"containerID": "ptp%d", "ifname": "eth0"}`, i)), "CNI_COMMAND=GC"); k.code != 0 {
			t.Error(k)
		}
	}
	allReach(t, patience, workloads...)
	// What Weft says as IPAM, in every version.
	for _, v := range cniVersions {
		conf, err := json.Marshal(ptp(hosts[0], v).with(keys{"cniVersion": v, "name": "ptp"}))
		if err != nil {
			t.Fatal(err)
		}
		p := hosts[0].newPod("ipam-" + v)
		env := []string{"CNI_CONTAINERID=" + p.ContainerID, "CNI_NETNS=" + p.NetNS, "CNI_IFNAME=eth0"}
		first := hosts[0].raw(string(conf), append(env, "CNI_COMMAND=ADD")...)
		if again := hosts[0].raw(string(conf), append(env, "CNI_COMMAND=ADD")...); first.code != 0 || string(again.stdout) != string(first.stdout) {
			t.Errorf("%v, and again %v", first, again)
		}
		if k := hosts[0].raw(string(conf), append(env, "CNI_COMMAND=DEL")...); k.code != 0 {
			t.Error(k)
		}
	}
	// Restarted, the daemons leave the interfaces that are not theirs as they are.
	for _, h := range hosts {
		h.Kill()
		h.Relaunch()
		ready(t, h.Host)
	}
	allReach(t, patience, workloads...)
	for i, h := range hosts {
		h.del(network(t, newest, "ptp", ptp(h, newest)), pods[2*i])
		h.del(h.weft(), pods[2*i+1])
		clean[i].leaks(t)
	}
}
