// SPDX-License-Identifier: Apache-2.0

package router

func G() { count = 7 } // want global
