// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"log"
	"net/netip"
	"strings"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// logBridge is where memberlist's lines end up: each gets the level that it
// deserves here, and those that a stranger or a broken network can cause over
// and over pass a gate per kind of message and source.
type logBridge struct {
	log  *zap.Logger
	gate *gate
}

// memberlistLogger returns a logger for memberlist.Config.Logger.
func memberlistLogger(z *zap.Logger, g *gate) *log.Logger {
	return log.New(&logBridge{log: z, gate: g}, "", 0)
}

// knownLines gives lines of memberlist that matter another level or wording than
// their own; the first prefix that fits counts.
var knownLines = []struct {
	prefix, text string
	level        zapcore.Level
}{
	{"Was able to connect to", "", zapcore.DebugLevel}, // Node.Blocked says it in full
	{"Failed to send", "", zapcore.DebugLevel},         // to addresses that are none; the node fails, which is told
	{"Failed push/pull merge", "", zapcore.WarnLevel},
	{"Push/Pull with", "", zapcore.DebugLevel},
	{"Failed fallback TCP ping", "", zapcore.DebugLevel},
	{"Failed to receive", "", zapcore.DebugLevel},
	{"Failed to push local state", "", zapcore.DebugLevel},
	{"Failed to read remote state", "", zapcore.DebugLevel},
	{"Refuting", "", zapcore.DebugLevel},
	{"Got ping for unexpected node", "", zapcore.DebugLevel},
	{"ignoring alive message", "", zapcore.DebugLevel},
}

// Write takes one line of a log.Logger: "[LEVEL] memberlist: text from=address".
func (b *logBridge) Write(p []byte) (int, error) {
	line, level := parseLine(string(p))
	kind, source := classify(line)
	text := line
	for _, k := range knownLines {
		if strings.HasPrefix(line, k.prefix) {
			level = k.level
			if k.text != "" {
				text, kind = k.text, k.text
			}
			break
		}
	}
	if !b.log.Core().Enabled(level) {
		return len(p), nil
	}
	var fields []zap.Field
	if source != "" {
		fields = append(fields, zap.String("from", source))
	}
	if level > zapcore.DebugLevel {
		ok, muted := b.gate.pass(kind+"|"+source, time.Now())
		if !ok {
			return len(p), nil
		}
		if muted > 0 {
			fields = append(fields, zap.Uint64("like it before", muted))
		}
	}
	if e := b.log.Check(level, text); e != nil {
		e.Write(fields...)
	}
	return len(p), nil
}

// parseLine splits memberlist's prefix off.
func parseLine(s string) (text string, level zapcore.Level) {
	s = strings.TrimSpace(s)
	level = zapcore.DebugLevel
	if rest, ok := strings.CutPrefix(s, "["); ok {
		if name, rest, ok := strings.Cut(rest, "]"); ok {
			s = strings.TrimSpace(rest)
			switch name {
			case "WARN":
				level = zapcore.InfoLevel
			case "ERR", "ERROR":
				level = zapcore.WarnLevel
			}
		}
	}
	return strings.TrimPrefix(s, "memberlist: "), level
}

// classify returns what the line has in common with others of its kind, and the node
// or the address that it names as its source, without the port.
func classify(line string) (kind, source string) {
	var words []string
	for w := range strings.FieldsSeq(line) {
		if a, ok := strings.CutPrefix(w, "from="); ok {
			source = a
			if ap, err := netip.ParseAddrPort(a); err == nil {
				source = sourceKey(ap.Addr())
				if id, ok := nodeAt(ap); ok {
					source = id.String()
				}
			}
			continue
		}
		if !strings.ContainsAny(w, "0123456789") {
			words = append(words, w)
		}
	}
	return strings.Join(words, " "), source
}
