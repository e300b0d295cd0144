// SPDX-License-Identifier: Apache-2.0

package ring

const X = 1
