package spec

import (
	"fmt"
	"math/big"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Sizes, in bytes.
const (
	KiB int64 = 1 << 10
	MiB int64 = 1 << 20
	GiB int64 = 1 << 30
	TiB int64 = 1 << 40
)

var (
	sizeUnits   = map[string]int64{"KiB": KiB, "MiB": MiB, "GiB": GiB, "TiB": TiB}
	sizePattern = regexp.MustCompile(`^(\d{1,18}(?:\.\d{1,6})?)\s?([A-Za-z]*)$`)
	sizeNumber  = regexp.MustCompile(`^\d+(?:\.\d+)?`)
)

// maxSize bounds sizes so that sums of them stay far from overflow.
const maxSize = 1024 * 1024 * GiB

// ParseSize reads 4GiB, 1.5TiB or 512MiB into bytes. Only binary units are
// accepted: GB means one thing on a disk's label and another to qm.
func ParseSize(s string) (int64, error) {
	m := sizePattern.FindStringSubmatch(s)
	if m == nil || sizeUnits[m[2]] == 0 {
		return 0, fmt.Errorf("%s is not a size (try %s)", show(s), suggestSize(s))
	}
	number, ok := new(big.Rat).SetString(m[1])
	if !ok {
		return 0, fmt.Errorf("%s is not a size (try 4GiB)", show(s))
	}
	number.Mul(number, new(big.Rat).SetInt64(sizeUnits[m[2]]))
	if !number.IsInt() {
		return 0, fmt.Errorf("%s is not a whole number of bytes", show(s))
	}
	if number.Cmp(new(big.Rat).SetInt64(maxSize)) > 0 {
		return 0, fmt.Errorf("%s is too large", show(s))
	}
	return number.Num().Int64(), nil
}

// suggestSize keeps the number that was meant and corrects the unit.
func suggestSize(s string) string {
	number := sizeNumber.FindString(s)
	if number == "" || len(number) > 12 {
		return "4GiB"
	}
	unit := "GiB"
	if rest := strings.TrimSpace(s[len(number):]); rest != "" {
		switch rest[0] {
		case 'k', 'K':
			unit = "KiB"
		case 'm', 'M':
			unit = "MiB"
		case 't', 'T':
			unit = "TiB"
		}
	}
	return number + unit
}

// FormatSize is a size as the Spec writes it, in the largest unit that is exact.
func FormatSize(bytes int64) string {
	for _, u := range []string{"TiB", "GiB", "MiB", "KiB"} {
		if bytes != 0 && bytes%sizeUnits[u] == 0 {
			return strconv.FormatInt(bytes/sizeUnits[u], 10) + u
		}
	}
	return strconv.FormatInt(bytes, 10) + "B"
}

// parseRate reads 50MiB/s into bytes a second.
func parseRate(s string) (int64, error) {
	size, second := strings.CutSuffix(s, "/s")
	size = strings.TrimRight(size, " ")
	bytes, err := ParseSize(size)
	switch {
	case sizePattern.MatchString(size) && second && err != nil && sizeUnits[sizePattern.FindStringSubmatch(size)[2]] != 0:
		return 0, fmt.Errorf("%s is not a rate: %w", show(s), err) // its unit is right
	case err != nil || !second:
		return 0, fmt.Errorf("%s is not a rate (try %s/s)", show(s), suggestRate(s))
	case bytes == 0:
		return 0, fmt.Errorf("%s lets nothing through (leave it out for no limit)", show(s))
	}
	return bytes, nil
}

// suggestRate keeps the number that was meant; without a unit it is MiB.
func suggestRate(s string) string {
	number := sizeNumber.FindString(s)
	switch rest := strings.TrimSpace(s[len(number):]); {
	case number == "" || len(number) > 12:
		return "50MiB"
	case rest == "" || rest == "/s":
		return number + "MiB"
	default:
		return suggestSize(s)
	}
}

var percentPattern = regexp.MustCompile(`^(\d{1,3})%$`)

// parseMemory reads a size or a share of the host.
func parseMemory(s string) (Memory, error) {
	if m := percentPattern.FindStringSubmatch(s); m != nil {
		percent, _ := strconv.Atoi(m[1]) // three digits
		if percent < 1 || percent > 100 {
			return Memory{}, fmt.Errorf("%s is not between 1%% and 100%%", show(s))
		}
		return Memory{Percent: percent}, nil
	}
	if strings.HasSuffix(s, "%") {
		return Memory{}, fmt.Errorf("%s is not a share (try 30%%)", show(s))
	}
	bytes, err := ParseSize(s)
	if err != nil {
		return Memory{}, err
	}
	if bytes%MiB != 0 {
		return Memory{}, fmt.Errorf("%s is not a whole number of MiB", show(s))
	}
	if bytes < minMemory {
		return Memory{}, fmt.Errorf("%s is less than a guest can run with (%s)", show(s), FormatSize(minMemory))
	}
	return Memory{Bytes: bytes}, nil
}

// Bounds that no real guest is outside of.
const (
	minMemory = 128 * MiB
	maxWait   = 24 * time.Hour
	// MinDisk is the least that a guest's system disk may have, in bytes.
	MinDisk = 1 * GiB
)

func parseWait(s string, zero bool) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	switch {
	case err != nil:
		return 0, fmt.Errorf("%s is not a time (try 5m or 60s)", show(s))
	case d < 0:
		return 0, fmt.Errorf("%s is negative", show(s))
	case d == 0 && !zero:
		return 0, fmt.Errorf("%s leaves no time", show(s))
	case d > maxWait:
		return 0, fmt.Errorf("%s is longer than a day", show(s))
	}
	return d, nil
}

// show quotes a value for a message, shortened: it may be a pasted file.
func show(s string) string {
	const most = 60
	runes := []rune(masked(s))
	if len(runes) > most {
		return strconv.Quote(string(runes[:most]) + "…")
	}
	return strconv.Quote(string(runes))
}

// nearest is the known word that was probably meant, "" when none is near.
func nearest(word string, known []string) string {
	best, bestDistance := "", 3
	if len([]rune(word)) <= 3 {
		bestDistance = 2
	}
	for _, k := range known {
		if strings.EqualFold(word, k) {
			return k
		}
		if d := distance(strings.ToLower(word), strings.ToLower(k), bestDistance); d < bestDistance {
			best, bestDistance = k, d
		}
	}
	return best
}

// distance counts the letters to insert, drop, change or swap with a neighbour;
// it gives up at limit.
func distance(a, b string, limit int) int {
	x, y := []rune(a), []rune(b)
	if len(x)-len(y) >= limit || len(y)-len(x) >= limit {
		return limit
	}
	before, row := make([]int, len(y)+1), make([]int, len(y)+1)
	for j := range row {
		row[j] = j
	}
	var older []int // the row before before; first read when it is one
	for i := 1; i <= len(x); i++ {
		older, before, row = before, row, make([]int, len(y)+1)
		row[0] = i
		for j := 1; j <= len(y); j++ {
			cost := 1
			if x[i-1] == y[j-1] {
				cost = 0
			}
			row[j] = min(before[j]+1, row[j-1]+1, before[j-1]+cost)
			if i > 1 && j > 1 && x[i-1] == y[j-2] && x[i-2] == y[j-1] {
				row[j] = min(row[j], older[j-2]+1)
			}
		}
	}
	return row[len(y)]
}
