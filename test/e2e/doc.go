// Package e2e holds the tests of the whole system with real processes: labs
// made by hl-lab, agents, controllers and hlctl as make build left them in bin/.
// Its tests have the build tag e2e; make e2e runs them.
package e2e
