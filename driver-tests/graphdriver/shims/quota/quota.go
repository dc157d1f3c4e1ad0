// Package quota stands in for Docker's, which Debian's -dev packages leave out. Docker's own drivers find no quotas with it.
package quota

import "errors"

// ErrQuotaNotSupported is what the conformance suite compares an error with.
var ErrQuotaNotSupported = errors.New("Filesystem does not support, or has not enabled quotas")

// Quota is a limit in bytes.
type Quota struct{ Size uint64 }

// Control would set project quotas.
type Control struct{}

// NewControl finds none.
func NewControl(string) (*Control, error) { return nil, ErrQuotaNotSupported }

// SetQuota is never reached: there is no Control to call it on.
func (*Control) SetQuota(string, Quota) error { return ErrQuotaNotSupported }
