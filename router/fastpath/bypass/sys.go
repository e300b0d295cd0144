// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"bytes"
	"errors"
	"runtime"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The structs below are parts of union bpf_attr (linux/bpf.h); what the kernel knows besides is zero.

// bpf calls bpf(2), again where it is interrupted. What attr points to must be kept alive by the caller.
func bpf(command int, attr unsafe.Pointer, size uintptr) (int, error) {
	for {
		r, _, e := unix.Syscall(unix.SYS_BPF, uintptr(command), uintptr(attr), size)
		switch e {
		case 0:
			return int(r), nil
		case unix.EINTR, unix.EAGAIN:
		default:
			return -1, e
		}
	}
}

// address is that of b, for the kernel.
func address(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) }

// objectName is a name as the kernel takes it: up to 15 letters, digits, dots and underscores.
func objectName(s string) (name [unix.BPF_OBJ_NAME_LEN]byte) {
	copy(name[:len(name)-1], s)
	return name
}

type mapAttr struct {
	kind, key, value, entries, flags, inner, node uint32
	name                                          [unix.BPF_OBJ_NAME_LEN]byte
}

// newMap makes a map whose keys and values have these sizes in bytes, and returns its descriptor.
func newMap(name string, kind, key, value, entries uint32) (int, error) {
	a := mapAttr{kind: kind, key: key, value: value, entries: entries, name: objectName(name)}
	return bpf(unix.BPF_MAP_CREATE, unsafe.Pointer(&a), unsafe.Sizeof(a))
}

type elementAttr struct {
	fd, _      uint32
	key, value uint64
	flags      uint64
}

// element reads or writes the value of a key.
func element(command, fd int, key, value []byte) error {
	a := elementAttr{fd: uint32(fd), key: address(key), value: address(value)}
	_, err := bpf(command, unsafe.Pointer(&a), unsafe.Sizeof(a))
	runtime.KeepAlive(key)
	runtime.KeepAlive(value)
	return err
}

type programAttr struct {
	kind, count   uint32
	code, license uint64
	level, size   uint32
	log           uint64
	version       uint32
	flags         uint32
	name          [unix.BPF_OBJ_NAME_LEN]byte
}

// newProgram has the kernel check a program and translate it, and returns its descriptor. The error may be a [refusal].
func newProgram(name string, code []byte) (int, error) {
	license := []byte("Apache-2.0\x00")
	a := programAttr{
		kind: unix.BPF_PROG_TYPE_SCHED_CLS, count: uint32(len(code) / 8), code: address(code), license: address(license), name: objectName(name),
	}
	fd, err := bpf(unix.BPF_PROG_LOAD, unsafe.Pointer(&a), unsafe.Sizeof(a))
	if err != nil && !errors.Is(err, unix.EPERM) {
		log := make([]byte, 1<<16)
		a.level, a.size, a.log = 1, uint32(len(log)), address(log)
		if again, _ := bpf(unix.BPF_PROG_LOAD, unsafe.Pointer(&a), unsafe.Sizeof(a)); again >= 0 {
			fd, err = again, nil
		} else {
			err = &refusal{err: err, words: lastWords(log)}
		}
		runtime.KeepAlive(log)
	}
	runtime.KeepAlive(code)
	runtime.KeepAlive(license)
	return fd, err
}

// A refusal is what the kernel says of a program that it does not take.
type refusal struct {
	err   error
	words string // the reason, if it tells one
}

func (r *refusal) Error() string {
	if r.words == "" {
		return r.err.Error()
	}
	return r.err.Error() + ": " + r.words
}

func (r *refusal) Unwrap() error { return r.err }

// lastWords are the lines of the kernel's log before its summary.
func lastWords(log []byte) string {
	log, _, _ = bytes.Cut(log, []byte{0})
	lines := strings.Split(strings.TrimSpace(string(log)), "\n")
	if len(lines) == 1 && lines[0] == "" {
		return ""
	}
	return strings.Join(lines[max(0, len(lines)-3):], ": ")
}

// hook is a place in the way of packets (linux/bpf.h, enum bpf_attach_type).
type hook uint32

const (
	hookIn  hook = 46 // BPF_TCX_INGRESS
	hookOut hook = 47 // BPF_TCX_EGRESS
)

type linkAttr struct {
	program, target, hook, flags, relative, _ uint32
	revision                                  uint64
}

// attach puts a program behind those that a device of the thread's namespace has, and returns the descriptor that keeps it there: the kernel takes it
// away with the last process that has it.
func attach(device, program int, h hook) (link int, err error) {
	a := linkAttr{target: uint32(device), program: uint32(program), hook: uint32(h)}
	return bpf(unix.BPF_LINK_CREATE, unsafe.Pointer(&a), unsafe.Sizeof(a))
}

type queryAttr struct {
	target, hook, flags, attached uint32
	programs                      uint64
	count, _                      uint32
	programFlags, links           uint64
	linkFlags, revision           uint64
}

// attached are the numbers of the programs that a device of the thread's namespace has.
func attached(device int, h hook) ([]uint32, error) {
	const most = 64 // the kernel has no more (BPF_MPROG_MAX)
	ids := make([]uint32, most)
	a := queryAttr{target: uint32(device), hook: uint32(h), programs: uint64(uintptr(unsafe.Pointer(&ids[0]))), count: most}
	_, err := bpf(unix.BPF_PROG_QUERY, unsafe.Pointer(&a), unsafe.Sizeof(a))
	runtime.KeepAlive(ids)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return ids[:min(a.count, most)], nil
}

type infoAttr struct {
	fd, size uint32
	info     uint64
}

// programInfo is the beginning of struct bpf_prog_info.
type programInfo struct {
	kind, id              uint32
	tag                   [8]byte
	jited, translated     uint32
	jitedAt, translatedAt uint64
	loaded                uint64
	owner, maps           uint32
	mapIDs                uint64
}

func numberOf(program int) (id uint32, err error) {
	var i programInfo
	a := infoAttr{fd: uint32(program), size: uint32(unsafe.Sizeof(i)), info: uint64(uintptr(unsafe.Pointer(&i)))}
	_, err = bpf(unix.BPF_OBJ_GET_INFO_BY_FD, unsafe.Pointer(&a), unsafe.Sizeof(a))
	runtime.KeepAlive(&i)
	return i.id, err
}
