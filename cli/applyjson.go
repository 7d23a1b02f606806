package cli

import (
	"encoding/json"
	"io"
	"time"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"google.golang.org/protobuf/types/known/durationpb"
)

// jsonShow prints one event a line, and last the sum. In YAML each line is a
// document of its own.
type jsonShow struct {
	out  io.Writer
	yaml bool
}

func (j *jsonShow) line(v any) {
	if j.yaml {
		_, _ = io.WriteString(j.out, "--- ")
	}
	enc := json.NewEncoder(j.out)
	enc.SetEscapeHTML(false)
	// Only strings, numbers and bools are in there; a reader that went away is
	// no reason to let go of the run.
	_ = enc.Encode(v)
}

// eventDoc is one event in JSON.
type eventDoc struct {
	Time    *string  `json:"time"`
	Run     int64    `json:"run"`
	Kind    string   `json:"kind"`
	Step    string   `json:"step"`
	Guest   string   `json:"guest"`
	Host    string   `json:"host"`
	Phase   string   `json:"phase"`
	Text    string   `json:"text"`
	Note    string   `json:"note"`
	Call    *callDoc `json:"call"`
	Seconds *float64 `json:"seconds"`
	Limit   *float64 `json:"limitSeconds"`
}

type callDoc struct {
	Program  string   `json:"program"`
	Args     []string `json:"args"`
	Exit     int32    `json:"exit"`
	Seconds  float64  `json:"seconds"`
	Mutating bool     `json:"mutating"`
	Error    string   `json:"error"`
}

func eventJSON(e *homelabv1.Event) eventDoc {
	doc := eventDoc{
		Time: timeOrNull(timeOf(e.GetTime())), Run: e.GetRun(), Kind: enumWord(e.GetKind().String(), "EVENT_KIND_"),
		Step: e.GetStep(), Guest: e.GetGuest(), Host: e.GetHost(), Phase: e.GetPhase(), Text: e.GetText(), Note: e.GetNote(),
	}
	if e.GetTook() != nil {
		s := seconds(e.GetTook())
		doc.Seconds = &s
	}
	if e.GetLimit() != nil {
		s := seconds(e.GetLimit())
		doc.Limit = &s
	}
	if c := e.GetCall(); c != nil {
		doc.Call = &callDoc{c.GetProgram(), list(c.GetArgs()), c.GetExit(), seconds(c.GetTook()), c.GetMutating(), c.GetError()}
	}
	return doc
}

// seconds is a duration in JSON, to the millisecond.
func seconds(d *durationpb.Duration) float64 {
	// Duration.Seconds adds two parts, which gives 9.399000000000001.
	return float64(d.AsDuration().Round(time.Millisecond).Milliseconds()) / 1000
}

// summaryDoc is the sum in JSON; its fields are a contract.
type summaryDoc struct {
	Done          int32   `json:"done"`
	Failed        int32   `json:"failed"`
	Skipped       int32   `json:"skipped"`
	Refused       int32   `json:"refused"`
	Unchanged     int32   `json:"unchanged"`
	MutatingCalls int32   `json:"mutatingCalls"`
	Seconds       float64 `json:"seconds"`
}

func summaryJSON(s *homelabv1.Summary) summaryDoc {
	return summaryDoc{
		s.GetDone(), s.GetFailed(), s.GetSkipped(), s.GetRefused(), s.GetUnchanged(),
		s.GetMutatingCalls(), seconds(s.GetTook()),
	}
}

func (j *jsonShow) close() {}

func (j *jsonShow) event(e *homelabv1.Event, _ bool) { j.line(eventJSON(e)) }

func (j *jsonShow) summary(s *homelabv1.Summary, _ time.Duration) {
	j.line(map[string]summaryDoc{"summary": summaryJSON(s)})
}
