//go:build race

package plan_test

// slower is what the race detector costs.
const slower = 10
