// SPDX-License-Identifier: Apache-2.0

package filter

const X = 1
