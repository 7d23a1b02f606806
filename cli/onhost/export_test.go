package onhost

import "time"

// Impatient tries dpkg's lock again at once.
func (r Root) Impatient() Root {
	r.poll = time.Nanosecond
	return r
}
