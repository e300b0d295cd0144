// SPDX-License-Identifier: Apache-2.0

package policy

// A Reason is why one end of a connection decides as it does.
type Reason uint8

// The reasons.
const (
	NotAnEndpoint Reason = iota // nothing here has rules for that address
	Itself                      // an endpoint always reaches itself
	OwnNode                     // an endpoint and its own node
	ByRule                      // Verdict.Policy and Rule say which
	Isolated                    // Verdict.Isolating isolate it, and none of them allows this
	Open                        // no policy has anything to say
)

// A Verdict is the decision of one end.
type Verdict struct {
	Allowed bool
	Reason  Reason
	// Endpoint is whose rules decided, if it is one.
	Endpoint Name
	// Policy is what decided, with Rule as an index into its rules of that direction, for ByRule. Of several policies of the Network tier
	// that allow it, it is the first by name and the first rule of that.
	Policy PolicyKey
	Rule   int
	// Isolating are the policies that isolate the endpoint, sorted, for Isolated.
	Isolating []PolicyKey
}

// A Decision is those of both ends; the connection is allowed if both allow it.
type Decision struct{ Egress, Ingress Verdict }

// Allowed says whether both ends allow it.
func (d Decision) Allowed() bool { return d.Egress.Allowed && d.Ingress.Allowed }
