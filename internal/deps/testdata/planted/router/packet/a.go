// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"crypto/rand" // want pure
	"encoding/binary"
	"fmt"
	"log/slog" // want pure
	"net"      // want pure
	"net/http" // want pure
	"net/netip"
	"os" // want pure
	clock "time"

	"github.com/weftnet/weft/router/route" // want pure
	"go.uber.org/zap"                      // want pure
)

var (
	ErrShort = fmt.Errorf("short")
	table    = [4]int{1, 2, 3, 4}
)

func F(d clock.Duration) {
	go F(d)                                        // want pure
	_ = clock.Now()                                // want pure
	fmt.Println(d)                                 // want pure
	println("x")                                   // want pure
	_, _ = clock.NewTimer, fmt.Sprint(d, table[0]) // want pure
	_, _, _, _ = rand.Reader, binary.BigEndian, slog.Info, net.IPv4len
	_, _, _, _, _ = http.Get, netip.Addr{}, os.Args, route.X, zap.New
}
