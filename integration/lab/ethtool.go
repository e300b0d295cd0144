// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Commands and constants of linux/ethtool.h that golang.org/x/sys lacks.
const (
	ethtoolSetInfo  = 0x37 // ETHTOOL_GSSET_INFO
	ethtoolStrings  = 0x1b // ETHTOOL_GSTRINGS
	ethtoolFeatures = 0x3b // ETHTOOL_SFEATURES
	featureSet      = 4    // ETH_SS_FEATURES
	featureName     = 32   // ETH_GSTRING_LEN
)

// setSegmentation switches what the device itself can cut on or off: all kinds of segments. The kernel goes on to move them
// as one and cuts them right before the device, as for a network card that cannot.
func (n *Namespace) setSegmentation(device string, on bool) error {
	return n.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(fd) }()
		names, err := features(fd, device)
		if err != nil {
			return err
		}
		blocks := (len(names) + 31) / 32
		request := make([]uint32, 2+2*blocks) // command, blocks, then which bits are meant and their values
		request[0], request[1] = ethtoolFeatures, uint32(blocks)
		for i, name := range names {
			if !segmentation(name) {
				continue
			}
			request[2+i/32*2] |= 1 << (i % 32)
			if on {
				request[3+i/32*2] |= 1 << (i % 32)
			}
		}
		buf := new(bytes.Buffer)
		if err := binary.Write(buf, binary.NativeEndian, request); err != nil {
			return err
		}
		return ethtool(fd, device, buf.Bytes())
	})
}

// segmentation reports whether the feature of that name is a kind of segmentation by the device.
func segmentation(name string) bool {
	return name != "tx-generic-segmentation" && strings.HasPrefix(name, "tx-") && strings.HasSuffix(name, "-segmentation") ||
		name == "tx-gso-list"
}

// features returns the names of all features that this kernel knows, in the order of their bits.
func features(fd int, device string) ([]string, error) {
	e := binary.NativeEndian
	info := slices.Concat(e.AppendUint32(nil, ethtoolSetInfo), make([]byte, 4), e.AppendUint64(nil, 1<<featureSet), make([]byte, 4))
	if err := ethtool(fd, device, info); err != nil {
		return nil, err
	}
	count := int(e.Uint32(info[16:]))
	const head = 12
	text := slices.Concat(e.AppendUint32(nil, ethtoolStrings), e.AppendUint32(nil, featureSet), e.AppendUint32(nil, uint32(count)),
		make([]byte, count*featureName))
	if err := ethtool(fd, device, text); err != nil {
		return nil, err
	}
	names := make([]string, count)
	for i := range names {
		names[i] = unix.ByteSliceToString(text[head+i*featureName:][:featureName])
	}
	return names, nil
}

// ethtool hands one request to the device's driver, which answers in it.
func ethtool(fd int, device string, request []byte) error {
	var ifreq struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte // the rest of the union
	}
	copy(ifreq.name[:unix.IFNAMSIZ-1], device)
	var pin runtime.Pinner
	pin.Pin(&request[0])
	defer pin.Unpin()
	ifreq.data = unsafe.Pointer(&request[0])
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&ifreq))); errno != 0 {
		return fmt.Errorf("ethtool on %s: %w", device, errno)
	}
	return nil
}
