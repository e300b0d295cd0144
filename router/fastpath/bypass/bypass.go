// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

const (
	// maxFlows is how many flows of a family are taken around the stack, and maxCandidates how many more are counted; those not seen for the longest time make room.
	// Together they take 11 MB of the kernel's memory.
	maxFlows, maxCandidates = 16384, 16384
	// spare is how many of the candidates each processor may hold back.
	spare = 256

	// The names of the programs, for who looks at what a device has.
	entryName  = "weft_bypass_in"
	exitName   = "weft_bypass_out"
	tunnelName = "weft_bypass_vx"
	inwardName = "weft_bypass_ns"
)

// Config is what a Bypass is made of.
type Config struct {
	Universe []netip.Prefix // at most one of each family, masked: both ends of a flow are in it
	Groups   []uint32       // devices of these groups are served (ip-link(8)), if they carry something
	// Busy is how many packets a device must carry within a quarter of a second before it is served: each takes the kernel's network lock for tens of milliseconds when
	// the programs come and when they go. 0: all are.
	Busy uint64
	Log  *zap.Logger
}

// A Bypass is the programs of one network namespace. Its methods may be called from any goroutine.
type Bypass struct {
	config      Config
	ns          namespace
	log         *zap.Logger
	tables      tables
	ring        *ring
	in, out     program
	tunnel      program // is out's at the devices of tunnels
	inward      program // is out's at those of workloads
	descriptors []int
	again       chan struct{} // devices are to be looked at
	newsRoom    int           // bytes
	list        func() ([]netlink.Link, error)
	heard       atomic.Int32 // how often it was begun to watch devices

	// What the programs are told. It is held for as long as it takes to write one number, never while devices or rules are looked at.
	turn    sync.Mutex
	epoch   uint32
	pauses  int
	reasons [reasonCount]string // why not; "" where there is nothing against it
	closed  bool

	mu      sync.Mutex        // held for moments
	names   map[string]bool   // further devices that are served, and whether for what comes in by them as well
	links   map[int]places    // of the devices that are served, by number
	ignored map[int]string    // what was said of devices that cannot be served
	waiting map[string]uint64 // devices that are not busy enough, and how many packets they have carried
	busy    map[string]bool   // devices that have become so
	gone    bool              // no device is served any more

	rules rulesLook // of the goroutine that looks
}

// What may be against taking packets around the stack.
const (
	reasonRun      = iota // nobody looks after it
	reasonDevices         // whether they go is not known
	reasonHost            // rules and programs of others
	reasonTracking        // it cannot be told
	reasonCount
)

// places are the descriptors that keep the programs at a device; -1: it is not there.
type places struct{ in, out int }

// program is one that the kernel has.
type program struct {
	fd   int
	id   uint32
	hook hook
}

// New loads the programs, which serve no device before [Bypass.Run]. The error says in one line what this host lacks and what to do about it.
func New(c Config) (*Bypass, error) { return newAt(c, here) }

// newAt is New for another namespace, which the caller keeps open as long as it uses the Bypass.
func newAt(c Config, ns namespace) (*Bypass, error) {
	b := &Bypass{
		config: c, ns: ns, log: c.Log, again: make(chan struct{}, 1), names: map[string]bool{}, links: map[int]places{}, ignored: map[int]string{}, waiting: map[string]uint64{}, busy: map[string]bool{},
		newsRoom: watchBuffer, list: netlink.LinkList,
		reasons: [reasonCount]string{reasonRun: "starting"},
	}
	if err := b.load(); err != nil {
		b.closeAll()
		return nil, explain(err)
	}
	return b, nil
}

// explain says what can be done about an error of the kernel.
func explain(err error) error {
	var refused *refusal
	switch {
	case errors.As(err, &refused) && refused.words != "":
		return fmt.Errorf("this kernel refuses the programs; report that, with its version: %w", err)
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Errorf("this host lets no program be loaded: CAP_NET_ADMIN and CAP_SYS_ADMIN are needed (%w)", err)
	case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("this kernel has no BPF with tcx: Linux 6.6 has, with CONFIG_BPF_SYSCALL and CONFIG_NET_XGRESS (%w)", err)
	}
	return err
}

func (b *Bypass) load() error {
	keep := func(fd int, err error) int {
		if err == nil {
			b.descriptors = append(b.descriptors, fd)
		}
		return fd
	}
	var err error
	table := func(name string, kind, key, value, entries uint32) (fd int) {
		if err == nil {
			fd, err = newMap(name, kind, key, value, entries)
			keep(fd, err)
		}
		return fd
	}
	b.tables.epoch = table("weft_epoch", unix.BPF_MAP_TYPE_ARRAY, 4, 4, 1)
	b.tables.notes = table("weft_notes", unix.BPF_MAP_TYPE_PERCPU_ARRAY, 4, noteSize, 1)
	b.tables.counts = table("weft_counts", unix.BPF_MAP_TYPE_PERCPU_ARRAY, 4, 8, 1)
	b.tables.requests = table("weft_requests", unix.BPF_MAP_TYPE_RINGBUF, 0, 0, ringSize)
	processors, failed := possible()
	if err = errors.Join(err, failed); err != nil {
		return err
	}
	for _, f := range carried(b.config.Universe) {
		b.tables.flows[f.index] = table("weft_flows"+f.name, unix.BPF_MAP_TYPE_HASH, uint32(f.keySize), flowSize, maxFlows)
		b.tables.candidates[f.index] = table("weft_others"+f.name, unix.BPF_MAP_TYPE_LRU_HASH, uint32(f.keySize), candidateSize, uint32(maxCandidates+spare*processors))
	}
	if err == nil {
		b.ring, err = newRing(b.tables.requests, ringSize)
	}
	if err != nil {
		return err
	}
	for _, x := range []struct {
		p    *program
		h    hook
		name string
		make func() ([]byte, error)
	}{
		{&b.in, hookIn, entryName, func() ([]byte, error) { return entry(b.tables, b.config.Universe) }},
		{&b.out, hookOut, exitName, func() ([]byte, error) { return exit(b.tables, b.config.Universe, outward) }},
		{&b.tunnel, hookOut, tunnelName, func() ([]byte, error) { return exit(b.tables, b.config.Universe, intoVXLAN) }},
		{&b.inward, hookOut, inwardName, func() ([]byte, error) { return exit(b.tables, b.config.Universe, inward) }},
	} {
		code, err := x.make()
		if err != nil {
			return err
		}
		fd, err := newProgram(x.name, code)
		keep(fd, err)
		if err != nil {
			return err
		}
		id, err := numberOf(fd)
		if err != nil {
			return err
		}
		*x.p = program{fd: fd, id: id, hook: x.h}
	}
	return b.ns.run(func() error { // no device has this number: that a query is refused for it says that there are such hooks
		_, err := attached(-1, hookIn)
		if errors.Is(err, unix.ENODEV) {
			return nil
		}
		return err
	})
}

// Close takes the programs off all devices, for good, and frees what the Bypass holds. It takes tens of milliseconds for each device that is served. Run must have ended.
func (b *Bypass) Close() {
	b.Remove()
	b.release()
	b.closeAll()
}

func (b *Bypass) closeAll() {
	b.turn.Lock()
	defer b.turn.Unlock()
	b.closed = true
	for _, fd := range b.descriptors {
		_ = unix.Close(fd) // nothing is written
	}
	b.descriptors = nil
	if b.ring != nil {
		b.ring.close()
		b.ring = nil
	}
}

// Pause has all packets go through the stack until resume, and forgets what it has decided so far. For changes of routes and rules: what the stack decides
// after resume is what is repeated. Pauses may overlap. It waits for nothing.
func (b *Bypass) Pause() (resume func()) {
	b.turn.Lock()
	defer b.turn.Unlock()
	b.pauses++
	b.tell()
	return sync.OnceFunc(func() {
		b.turn.Lock()
		defer b.turn.Unlock()
		b.pauses--
		b.tell()
	})
}

// Forget lets nothing count any more that the stack has decided so far. It waits for nothing.
func (b *Bypass) Forget() {
	b.turn.Lock()
	defer b.turn.Unlock()
	b.tell()
}

// current is the epoch that the programs are told, 0 in a pause.
func (b *Bypass) current() uint32 {
	b.turn.Lock()
	defer b.turn.Unlock()
	if b.pauses > 0 || b.why() != "" {
		return 0
	}
	return b.epoch
}

// tell begins another epoch, or tells the programs that there is a pause. b.turn is held.
func (b *Bypass) tell() {
	var now uint32
	if b.pauses == 0 && b.why() == "" {
		b.epoch = max(b.epoch+1, 1)
		now = b.epoch
	}
	if b.closed {
		return
	}
	if err := element(unix.BPF_MAP_UPDATE_ELEM, b.tables.epoch, make([]byte, 4), binary.NativeEndian.AppendUint32(nil, now)); err != nil {
		b.log.Error("packets may go around the stack for a second longer than they should; restart the daemon", zap.Error(err))
	}
}

// why says what is against it. b.turn is held.
func (b *Bypass) why() string { return cmp.Or(b.reasons[:]...) }

// State says why no packet bypasses the stack now; "" if they do.
func (b *Bypass) State() string {
	b.turn.Lock()
	defer b.turn.Unlock()
	return b.why()
}

// settle notes what is against taking packets around the stack, "" if nothing is any more.
func (b *Bypass) settle(reason int, why string) {
	b.turn.Lock()
	defer b.turn.Unlock()
	before := b.why()
	b.reasons[reason] = why
	now := b.why()
	switch {
	case now == before:
		return
	case now == "":
		b.log.Info("packets of established flows go around the host's stack")
	default:
		b.log.Info("packets of established flows go through the host's stack", zap.String("why", now))
	}
	if (now == "") != (before == "") {
		b.tell()
	}
}

// Count returns how many packets went around the stack. They may be superpackets.
func (b *Bypass) Count() (uint64, error) {
	processors, err := possible()
	if err != nil {
		return 0, err
	}
	values := make([]byte, 8*processors)
	if err := element(unix.BPF_MAP_LOOKUP_ELEM, b.tables.counts, make([]byte, 4), values); err != nil {
		return 0, fmt.Errorf("reading how many packets went around the stack: %w", err)
	}
	var sum uint64
	for ; len(values) > 0; values = values[8:] {
		sum += binary.NativeEndian.Uint64(values)
	}
	return sum, nil
}

// possible is how many processors the kernel has made room for.
func possible() (int, error) {
	const file = "/sys/devices/system/cpu/possible"
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, fmt.Errorf("counting processors: %w", err)
	}
	list := strings.TrimSpace(string(text))
	var last int
	if _, err := fmt.Sscan(list[strings.LastIndexAny(list, "-,")+1:], &last); err != nil {
		return 0, fmt.Errorf("counting processors: %s holds %q", file, list)
	}
	return last + 1, nil
}

// queues lists the queues by which processes take packets out of nftables and put them back (nfqueue); there is no such file where the kernel cannot do that.
const queues = "/proc/thread-self/net/netfilter/nfnetlink_queue"

// hindered tells why this host is better off without; "": nothing is known. In the namespace of the calling thread.
func (b *Bypass) hindered() string {
	if text, err := os.ReadFile(queues); err == nil && len(text) > 0 {
		return "a program is to see packets itself (nfqueue); it would see one of each flow and second"
	}
	copies, err := b.rules.copies(time.Now())
	switch {
	case err != nil:
		return fmt.Sprintf("whether rules of nftables copy packets (dup, TEE) cannot be found out: %v", err)
	case copies:
		return "a rule of nftables copies packets (dup, or TEE); where the copy goes the packet might"
	}
	return ""
}

const (
	lookEvery = 2 * time.Second
	// lookSoon is how often what is lacking is looked at again, and lookLate how long after a new device a second look follows: others may set up something there.
	lookSoon = 500 * time.Millisecond
	lookLate = 3 * time.Second
)
