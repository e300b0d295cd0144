// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"go.uber.org/zap"

	"github.com/weftnet/weft/cni"
	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/internal/bench"
	"github.com/weftnet/weft/internal/enforce"
	"github.com/weftnet/weft/internal/hostnet"
	"github.com/weftnet/weft/internal/netlock"
	"github.com/weftnet/weft/internal/netns"
	"github.com/weftnet/weft/mesh"
	"github.com/weftnet/weft/policy/compile"
	"github.com/weftnet/weft/policy/filter"
	"github.com/weftnet/weft/router"
	"github.com/weftnet/weft/router/fastpath/bypass"
	"github.com/weftnet/weft/router/fastpath/kernel"
	"github.com/weftnet/weft/router/session"
	"github.com/weftnet/weft/router/tun"
	"github.com/weftnet/weft/router/underlay"
)

// dataplane is what the node needs of the router.
type dataplane interface {
	Run(ctx context.Context) error
	SetPeers(peers []router.Peer) error
	SetKeys(k router.Keys)
	SetLocal(l router.Local)
	SendControl(b []byte, to router.Addr) error
	Examine(node uint64)
	// SendProof answers a probe of a node, and SendAsk asks it for an answer without a kernel path.
	SendProof(node, echo uint64) error
	SendAsk(node, echo uint64) error
	Greet()
	Stats() router.Stats
	PeerStats() []router.PeerStats
	// Offloads tells which are in use, TUN which kind, and Shards how many.
	Offloads() Offloads
	TUN() TUN
	Shards() int
	// CPUTime is what the packet threads have used of the processors.
	CPUTime() time.Duration
	// Reach tells how this node is reached, and Moved is told that the addresses of its host have changed.
	Reach() reach
	Moved()
	// Close frees queues and sockets, after Run.
	Close() error
}

// planeConfig says what the data path is to be made of.
type planeConfig struct {
	private   session.PrivateKey
	preshared session.PresharedKey
	shards    int
	tun       TUN
	offloads  Offloads
	copyDSCP  bool
	id        mesh.NodeID
	boot      uint64
	keys      router.Keys
	control   func(b []byte, from router.Addr, at time.Time)
	log       *zap.Logger
	// noRelay and relayLimit, in bits per second with 0 for none, bound what is passed on for others.
	noRelay    bool
	relayLimit uint64
	// onPath tells that a node is reached by another path, onReach that Reach may have changed. They are called from any
	// goroutine, and do not block.
	onPath  func(pathChange)
	onReach func()
	// onProof brings an answer to a probe, and onAsk what a node asks. They are called from any goroutine, and do not block.
	onProof func(node, echo uint64, at time.Time)
	onAsk   func(node, echo uint64, at time.Time)
}

// socket holds the node's UDP port.
type socket interface{ Close() error }

// controlServer answers the command line.
type controlServer interface {
	Run(ctx context.Context) error
	Path() string
}

// system is the host below a node: real, or made up by a test.
type system interface {
	lock(ctx context.Context, h netlock.Holder) (io.Closer, error)
	// probe tells early why the host cannot run a node.
	probe() error
	// listen takes the UDP port; plane then works with it, and closes it.
	listen(port uint16, shards int, o Offloads, log *zap.Logger) (socket, error)
	plane(s socket, c planeConfig) (dataplane, error)
	control(ctx context.Context, runDir string, svc api.Service, log *zap.Logger) (controlServer, error)
	// removeDevice deletes the TUN device.
	removeDevice() error
	network() mesh.Network
	// knock opens a socket for the mesh's packets while there is no plane.
	knock(id mesh.NodeID, keys router.Keys, deliver func(b []byte, from mesh.Addr)) (mesh.Knocker, error)
	// overlay opens sockets on the host's own overlay address.
	overlay() bench.Network
	host(log *zap.Logger) hostNetwork
	overlap(universe []netip.Prefix) error
	egress(advertise netip.Addr) (hostnet.Link, error)
	// watchNetwork calls changed when egress may find something else, until ctx ends.
	watchNetwork(ctx context.Context, changed func()) error
	// kernel returns what kernel paths need of the kernel, and probes opens their sockets.
	kernel(c kernel.Config) pathKernel
	probes(c probeConfig, came func(probeSeen), log *zap.Logger) (pathProbes, error)
	// policies returns what judges connections, and what makes its states on the node of that name. What others have changed of it and was
	// put right is told to repaired, a line each, from any goroutine.
	// Changed is called after every change of what packets are judged by, and after connections were cut; it does not block.
	policies(node string, repaired func(lines []string), changed func(), log *zap.Logger) (enforce.Kernel, enforce.Compiler)
	// bypass loads what takes packets of established flows around the host's stack.
	bypass(universe []netip.Prefix, log *zap.Logger) (flowBypass, error)
	netnsAt(path string) (netns.ID, error)
	bootID() (string, error)
	uptime() time.Duration // as cni.Uptime
	// notify tells the supervisor a state, as sd_notify(3) does.
	notify(state string)
}

// linux is the system that weft runs on.
type linux struct{}

func (linux) lock(ctx context.Context, h netlock.Holder) (io.Closer, error) {
	l, err := netlock.Take(ctx, h)
	if err != nil {
		return nil, err
	}
	return l, nil
}

func (linux) probe() error { return tun.Probe(Device) }

// sockets are those of the node's port.
type sockets struct {
	data    []*underlay.Conn
	control *underlay.Conn // nil: control datagrams come to those of data
}

func (s sockets) Close() error {
	var errs []error
	for _, c := range s.data {
		errs = append(errs, c.Close())
	}
	if s.control != nil {
		errs = append(errs, s.control.Close())
	}
	return errors.Join(errs...)
}

// keep closes all sockets for data but the first n.
func (s *sockets) keep(n int) error {
	var errs []error
	for _, c := range s.data[n:] {
		errs = append(errs, c.Close())
	}
	s.data = s.data[:n]
	if s.control != nil {
		errs = append(errs, s.control.Spread(n))
	}
	return errors.Join(errs...)
}

func (linux) listen(port uint16, shards int, o Offloads, log *zap.Logger) (socket, error) {
	data, control, err := underlay.ListenApart(port, shards, router.ControlType, underlay.Options{
		NoGSO: !o.GSO, NoGRO: !o.GRO,
		Fallback: func(err error) { log.Warn("GSO is switched off", zap.Error(err)) },
		NotApart: func(err error) {
			log.Warn("gossip shares the sockets of the data path, and may be lost under its load", zap.Error(err))
		},
	})
	if err != nil {
		return nil, err
	}
	return sockets{data, control}, nil
}

// kernelPlane is a router on a TUN device and UDP sockets.
type kernelPlane struct {
	*router.Router
	device *tun.Device
	conns  sockets
}

func (p kernelPlane) Close() error { return errors.Join(p.device.Close(), p.conns.Close()) }

func (p kernelPlane) Offloads() Offloads {
	dev, conn := p.device.Offloads(), p.conns.data[0] // the others are like it
	return Offloads{TSO: dev.TSO, USO: dev.USO, GSO: conn.GSO(), GRO: conn.GRO()}
}

func (p kernelPlane) TUN() TUN {
	if p.device.Portable() {
		return TUNPortable
	}
	return TUNNative
}

// Reach is that of dataplane.
func (p kernelPlane) Reach() reach {
	return reachOf(p.Router.Reach())
}

func (p kernelPlane) Shards() int { return len(p.device.Queues()) }

func (linux) plane(s socket, c planeConfig) (dataplane, error) {
	conns, ok := s.(sockets)
	if !ok {
		return nil, fmt.Errorf("cannot route by a %T", s)
	}
	dev, err := openTUN(tun.Open, tun.Config{
		Name: Device, Queues: c.shards, Persist: true,
		VNetHdr: c.offloads.TSO || c.offloads.USO, NoTSO: !c.offloads.TSO, NoUSO: !c.offloads.USO,
	}, c.tun, c.log)
	if err != nil {
		return nil, err
	}
	if err := conns.keep(len(dev.Queues())); err != nil {
		return nil, errors.Join(err, dev.Close())
	}
	config := router.Config{
		ID: uint64(c.id), Boot: c.boot, Keys: c.keys, NoRelay: c.noRelay, RelayLimit: c.relayLimit, Private: c.private, Preshared: c.preshared,
		TUN: router.Queues(dev), Conns: router.Conns(conns.data), CopyDSCP: c.copyDSCP, Log: c.log, Now: time.Now, Control: c.control,
		OnReach: c.onReach, OnProof: c.onProof, OnAsk: c.onAsk,
		OnPath: func(e router.PathEvent) { c.onPath(changeOf(e)) },
	}
	if conns.control != nil {
		config.ControlConn = conns.control
	}
	r, err := router.New(config)
	if err != nil {
		return nil, errors.Join(err, dev.Close())
	}
	return kernelPlane{r, dev, conns}, nil
}

func (linux) control(ctx context.Context, runDir string, svc api.Service, log *zap.Logger) (controlServer, error) {
	s, err := api.Listen(ctx, runDir, svc, log)
	if err != nil {
		return nil, err
	}
	return s, nil
}

func (linux) removeDevice() error   { return tun.Delete(Device) }
func (linux) network() mesh.Network { return mesh.SystemNetwork{} }
func (linux) knock(id mesh.NodeID, keys router.Keys, deliver func(b []byte, from mesh.Addr)) (mesh.Knocker, error) {
	k, err := openKnocker(id, keys, deliver)
	if err != nil {
		return nil, err
	}
	return k, nil
}

func (linux) overlay() bench.Network { return bench.SystemNetwork{} }

func (linux) host(log *zap.Logger) hostNetwork          { return hostnet.New(log) }
func (linux) overlap(u []netip.Prefix) error            { return hostnet.Overlap(u) }
func (linux) egress(a netip.Addr) (hostnet.Link, error) { return hostnet.Egress(a) }
func (linux) watchNetwork(ctx context.Context, changed func()) error {
	return hostnet.Watch(ctx, changed)
}
func (linux) kernel(c kernel.Config) pathKernel { return kernel.New(c) }

// cutCalm is for how long a daemon that has started cuts no connection: what others have told of their workloads since it was last written is told again by then.
const cutCalm = 3 * time.Second

func (linux) policies(node string, repaired func([]string), changed func(), log *zap.Logger) (enforce.Kernel, enforce.Compiler) {
	compiler := compile.New(node, compile.Limits{})
	f, err := filter.New(filter.Config{Log: log, Repaired: repaired, Changed: changed, Calm: cutCalm})
	if err != nil {
		return lackingKernel{err}, compiler
	}
	return f, compiler
}

func (linux) uptime() time.Duration { return cni.Uptime() }

// busyDevice is how many packets a device must have carried in a quarter of a second before packets go around the stack there.
const busyDevice = 25

func (linux) bypass(universe []netip.Prefix, log *zap.Logger) (flowBypass, error) {
	b, err := bypass.New(bypass.Config{Universe: universe, Groups: []uint32{hostnet.GroupWorkloads, hostnet.GroupPaths}, Busy: busyDevice, Log: log})
	if err != nil {
		return nil, err
	}
	return b, nil
}

func (linux) netnsAt(path string) (netns.ID, error) { return netns.At(path) }

func (linux) bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("reading the kernel's boot ID: %w; is /proc mounted?", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// notify has nobody to tell where no supervisor listens; that is no error.
func (linux) notify(state string) { _, _ = daemon.SdNotify(false, state) }
