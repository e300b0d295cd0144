// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/integration/lab"
)

// envBinary names the weft binary to test.
const envBinary = "WEFT_BIN"

// envWithout makes the test binary take something away from itself and then become the weft binary.
const envWithout = "WEFT_TEST_WITHOUT"

// envIdle makes the test binary wait until it is killed.
const envIdle = "WEFT_TEST_IDLE"

// envVarLib makes the test binary become the program that its arguments name, which sees the directory given as /var/lib.
const envVarLib = "WEFT_TEST_VAR_LIB"

// envScratch names a directory that goes when the last test has ended.
const envScratch = "WEFT_TEST_SCRATCH"

// waiting is how many tests run at once at least, of those that may: they wait for timers most of the time.
const waiting = 5

func TestMain(m *testing.M) {
	if os.Getenv(envIdle) != "" {
		time.Sleep(time.Hour)
		os.Exit(0)
	}
	if what := os.Getenv(envWithout); what != "" {
		runtime.LockOSThread()
		fmt.Fprintf(os.Stderr, "becoming weft without %s: %v\n", what, become(what))
		os.Exit(99)
	}
	if dir := os.Getenv(envVarLib); dir != "" {
		runtime.LockOSThread()
		fmt.Fprintf(os.Stderr, "becoming %v with %s as /var/lib: %v\n", os.Args[1:], dir, withVarLib(dir))
		os.Exit(99)
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "weft-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if err := os.Setenv(envScratch, dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for _, b := range []struct{ env, pkg, modfile string }{
		{env: envBinary, pkg: "./cmd/weft"},
		{env: envPlugin, pkg: "./cmd/weft-cni"},
		{env: envWireGuard, pkg: "golang.zx2c4.com/wireguard"},
		{env: envReference, pkg: "tool", modfile: "tools/cni/go.mod"},
	} {
		if os.Getenv(b.env) != "" {
			continue
		}
		path := filepath.Join(dir, filepath.Base(b.pkg))
		args := []string{"build", "-trimpath"}
		if b.modfile != "" { // several programs: a directory
			path += string(filepath.Separator)
			args = append(args, "-modfile="+b.modfile)
		}
		build := exec.Command("go", append(args, "-o", path, b.pkg)...)
		build.Dir = ".."
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "building %s: %v\n%s", b.pkg, err, out)
			return 1
		}
		if err := os.Setenv(b.env, path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	flag.Parse()
	if err := flag.Set("test.parallel", fmt.Sprint(max(waiting, runtime.GOMAXPROCS(0)))); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// Things that a daemon can be run without.
const (
	withoutTUN      = "tun"           // no /dev/net/tun
	withoutNetAdmin = "cap_net_admin" // no capability to change the network
	withoutQueues   = "tun queues"    // no multi-queue TUN devices, as far as the kernel tells
	withoutNFTables = "nftables"      // no nftables
	withoutAllBut   = "all but "      // no capabilities but those that follow, as numbers
)

// become replaces the process by weft with the same arguments. It returns only if that fails.
func become(without string) error {
	but, allBut := strings.CutPrefix(without, withoutAllBut)
	switch {
	case without == withoutTUN:
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return err
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return err
		}
		if err := unix.Mount("tmpfs", "/dev/net", "tmpfs", 0, ""); err != nil {
			return err
		}
	case without == withoutNetAdmin:
		if err := dropCapability(unix.CAP_NET_ADMIN); err != nil {
			return err
		}
	case without == withoutQueues:
		if err := refuseFeatures(); err != nil {
			return err
		}
	case without == withoutNFTables:
		if err := refuseNFTables(); err != nil {
			return err
		}
	case allBut:
		for c := range unix.CAP_LAST_CAP + 1 {
			if slices.Contains(strings.Fields(but), fmt.Sprint(c)) {
				continue
			}
			if err := dropCapability(c); err != nil {
				return err
			}
		}
	}
	path := os.Getenv(envBinary)
	return syscall.Exec(path, append([]string{path}, os.Args[1:]...), []string{"PATH=" + os.Getenv("PATH")})
}

// withVarLib replaces the process by the program that its arguments name, with a directory in the place of /var/lib. It returns only if that fails.
func withVarLib(dir string) error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := unix.Mount(dir, "/var/lib", "", unix.MS_BIND, ""); err != nil {
		return err
	}
	return syscall.Exec(os.Args[1], os.Args[1:], os.Environ())
}

// refuseNFTables makes the kernel refuse sockets of NETLINK_NETFILTER to this thread and what it becomes: as a kernel does that has no nftables.
func refuseNFTables() error {
	const domain, protocol = 16, 16 + 2*8 // the low halves of the arguments of socket(2)
	return refuse(unix.EPROTONOSUPPORT, unix.SYS_SOCKET, map[uint32]uint32{domain: unix.AF_NETLINK, protocol: unix.NETLINK_NETFILTER})
}

// refuseFeatures makes the kernel refuse TUNGETFEATURES, of ioctl(2), to this thread and what it becomes: as a kernel does
// that knows TUN devices and nothing more.
func refuseFeatures() error {
	const request = 16 + 8 // the low half of the second argument
	return refuse(unix.ENOTTY, unix.SYS_IOCTL, map[uint32]uint32{request: unix.TUNGETFEATURES})
}

// refuse makes the kernel answer a system call with an error, if its arguments are these: each by its offset in struct seccomp_data (linux/seccomp.h).
func refuse(with unix.Errno, call uint32, arguments map[uint32]uint32) error {
	const number = 0 // its offset
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		return errors.New("this is written for little-endian processors")
	}
	conditions := []struct{ at, value uint32 }{{number, call}}
	for at, value := range arguments {
		conditions = append(conditions, struct{ at, value uint32 }{at, value})
	}
	var filter []unix.SockFilter
	for i, c := range conditions {
		toTheEnd := uint8(2*(len(conditions)-i) - 1) // over what is left of the conditions, and the refusal
		filter = append(filter, unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: c.at},
			unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: c.value, Jf: toTheEnd})
	}
	filter = append(filter, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(with)},
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW})
	prog := &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	return unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(prog)), 0, 0)
}

// dropCapability takes a capability from the bounding set: whoever executes a program as root gets the capabilities that are
// in it, and no other.
func dropCapability(c int) error { return unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0) }

// launchWithout makes the host's launches do without something.
func launchWithout(t *testing.T, h *lab.Host, what string) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	h.By(exe)
	h.Env(envWithout+"="+what, envBinary+"="+os.Getenv(envBinary))
}

// idle starts a process inside the namespace that does nothing, as the given user.
func idle(t *testing.T, n *lab.Namespace, user uint32) *lab.Process {
	t.Helper()
	// The path of the test binary may lead through directories that only root can enter.
	p, err := n.Start(lab.Command{Path: "/proc/self/exe", User: user, Env: []string{envIdle + "=1"}})
	if err != nil {
		t.Fatal(err)
	}
	return p
}
