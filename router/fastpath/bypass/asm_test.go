// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

// Instructions as linux/bpf.h and the kernel's own tools write them.
func TestAssembler(t *testing.T) {
	a := newAssembler()
	a.label("start")
	a.mathReg(mov, r6, r1)
	a.load(word32, r2, r6, 76)
	a.store(word16, r10, -8, r2)
	a.storeImm(word64, r10, -16, -1)
	a.math(and, r2, 255)
	a.math32(and, r3, 0xff00ff00)
	a.jump(equal, r2, 7, "end")
	a.jump32(notEqual, r3, 1, "start")
	a.jumpReg(above, r2, r3, "end")
	a.wide(r1, wideMap, 9)
	a.call(1)
	a.always("end")
	a.label("end")
	a.exit()
	got, err := a.program()
	want := []byte{
		0xbf, 0x16, 0, 0, 0, 0, 0, 0,
		0x61, 0x62, 76, 0, 0, 0, 0, 0,
		0x6b, 0x2a, 0xf8, 0xff, 0, 0, 0, 0,
		0x7a, 0x0a, 0xf0, 0xff, 0xff, 0xff, 0xff, 0xff,
		0x57, 0x02, 0, 0, 255, 0, 0, 0,
		0x54, 0x03, 0, 0, 0, 0xff, 0, 0xff,
		0x15, 0x02, 6, 0, 7, 0, 0, 0,
		0x56, 0x03, 0xf8, 0xff, 1, 0, 0, 0,
		0x2d, 0x32, 4, 0, 0, 0, 0, 0,
		0x18, 0x11, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
		0x85, 0x00, 0, 0, 1, 0, 0, 0,
		0x05, 0x00, 0, 0, 0, 0, 0, 0,
		0x95, 0x00, 0, 0, 0, 0, 0, 0,
	}
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%v\n% x\n% x", err, got, want)
	}
}

func TestAssemblerErrors(t *testing.T) {
	for want, make := range map[string]func(a *assembler){
		"instruction 1: there is no label there":                 func(a *assembler) { a.always("there") },
		"instruction 0: there are two labels x":                  func(a *assembler) { a.label("x"); a.label("x") },
		"instruction 0: an operand is too large: 40000, 0":       func(a *assembler) { a.load(word8, r1, r2, 40000) },
		"instruction 0: an operand is too large: 0, 10000000000": func(a *assembler) { a.math(add, r1, 1e10) },
	} {
		a := newAssembler()
		make(a)
		if _, err := a.program(); err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	}
}

func TestExplained(t *testing.T) {
	for err, want := range map[error]string{
		unix.EPERM:                    "this host lets no program be loaded: CAP_NET_ADMIN and CAP_SYS_ADMIN are needed (operation not permitted)",
		fmt.Errorf("%w", unix.EINVAL): "this kernel has no BPF with tcx: Linux 6.6 has, with CONFIG_BPF_SYSCALL and CONFIG_NET_XGRESS (invalid argument)",
		unix.ENOSYS:                   "this kernel has no BPF with tcx: Linux 6.6 has, with CONFIG_BPF_SYSCALL and CONFIG_NET_XGRESS (function not implemented)",
		errors.New("something"):       "something",
	} {
		if got := explain(err).Error(); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}
