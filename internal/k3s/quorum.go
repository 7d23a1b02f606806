package k3s

import "fmt"

// Quorum is how many of the voters must be healthy.
func Quorum(voters int) int {
	if voters <= 0 {
		return 0
	}
	return voters/2 + 1
}

// Tolerance is how many more healthy voters may fail; below zero, quorum is lost.
func Tolerance(voters, healthy int) int { return healthy - Quorum(voters) }

// CanLose says whether one voter may leave, with the arithmetic. leavingHealthy
// is whether the one that leaves is among the healthy. The only voter never may.
func CanLose(voters, healthy int, leavingHealthy bool) (ok bool, reason string) {
	stay, stayHealthy := voters-1, healthy
	if leavingHealthy {
		stayHealthy--
	}
	have := fmt.Sprintf("%d %s, %d healthy", voters, plural(voters, "voter"), healthy)
	switch {
	case voters < 1 || healthy < 0 || healthy > voters || stayHealthy < 0 || stayHealthy > stay:
		return false, have + ": these counts cannot be"
	case voters == 1:
		return false, have + ": the only server is never removed"
	case healthy < Quorum(voters):
		return false, fmt.Sprintf("%s: quorum of %d needs %d, so nothing can be removed now", have, voters, Quorum(voters))
	case stayHealthy < Quorum(stay):
		return false, fmt.Sprintf("%s -> %d of %d would stay healthy, quorum of %d needs %d", have, stayHealthy, stay, stay, Quorum(stay))
	}
	return true, fmt.Sprintf("%s -> %d of %d stay healthy", have, stayHealthy, stay)
}

// CanAdd says whether a server may join now, with the arithmetic: adding a
// member is itself a write that needs quorum.
func CanAdd(voters, healthy int) (ok bool, reason string) {
	have := fmt.Sprintf("%d %s, %d healthy", voters, plural(voters, "voter"), healthy)
	switch {
	case voters < 1 || healthy < 0 || healthy > voters:
		return false, have + ": these counts cannot be"
	case healthy < Quorum(voters):
		return false, fmt.Sprintf("%s: quorum of %d needs %d, so nothing can join now", have, voters, Quorum(voters))
	}
	return true, fmt.Sprintf("%s -> %d voters, quorum %d", have, voters+1, Quorum(voters+1))
}

func plural(n int, word string) string {
	if n == 1 {
		return word
	}
	return word + "s"
}
