package plan_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"

	homelabv1 "github.com/homeiac/homelab/gen/homelab/v1"
	"github.com/homeiac/homelab/internal/spec"
)

func read(t *testing.T, text []byte, into any) {
	t.Helper()
	if len(text) == 0 {
		return
	}
	if err := yaml.Unmarshal(text, into); err != nil {
		t.Fatal(err)
	}
}

// fill lays YAML over a message, in words that are short to write: a Fact is
// "yes", "no: why" or "unknown: why", an enum value its last word, and sizes
// have units. Lists replace what is there.
func fill(t *testing.T, m protoreflect.Message, from any) {
	t.Helper()
	values, ok := from.(map[string]any)
	if !ok {
		t.Fatalf("%s: %v is no mapping", m.Descriptor().Name(), from)
	}
	for key, value := range values {
		fd := m.Descriptor().Fields().ByName(protoreflect.Name(key))
		if fd == nil {
			t.Fatalf("%s has no field %s", m.Descriptor().Name(), key)
		}
		if !fd.IsList() {
			if fd.Kind() == protoreflect.MessageKind && fd.Message().Name() == "Timestamp" {
				clock, err := time.Parse("15:04:05", fmt.Sprint(value))
				if err != nil {
					t.Fatal(err)
				}
				at := timestamppb.New(time.Date(2026, 11, 22, clock.Hour(), clock.Minute(), clock.Second(), 0, time.UTC))
				m.Set(fd, protoreflect.ValueOfMessage(at.ProtoReflect()))
			} else if fd.Kind() == protoreflect.MessageKind && fd.Message().Name() != "Fact" {
				fill(t, m.Mutable(fd).Message(), value)
			} else {
				m.Set(fd, scalar(t, m.NewField(fd), fd, value))
			}
			continue
		}
		m.Clear(fd)
		list := m.Mutable(fd).List()
		for _, item := range value.([]any) {
			if fd.Kind() == protoreflect.MessageKind {
				element := list.NewElement()
				fill(t, element.Message(), item)
				list.Append(element)
			} else {
				list.Append(scalar(t, protoreflect.Value{}, fd, item))
			}
		}
	}
}

func scalar(t *testing.T, empty protoreflect.Value, fd protoreflect.FieldDescriptor, value any) protoreflect.Value {
	t.Helper()
	text := fmt.Sprint(value)
	switch fd.Kind() {
	case protoreflect.MessageKind:
		word, reason, _ := strings.Cut(text, ": ")
		truth, ok := homelabv1.Truth_value["TRUTH_"+strings.ToUpper(word)]
		if !ok {
			t.Fatalf("%s: %q is no Fact", fd.Name(), text)
		}
		f := &homelabv1.Fact{Truth: homelabv1.Truth(truth), Reason: reason}
		return protoreflect.ValueOfMessage(f.ProtoReflect())
	case protoreflect.EnumKind:
		for i := range fd.Enum().Values().Len() {
			v := fd.Enum().Values().Get(i)
			if strings.HasSuffix(string(v.Name()), "_"+strings.ToUpper(text)) {
				return protoreflect.ValueOfEnum(v.Number())
			}
		}
		t.Fatalf("%s: %q is none of its values", fd.Name(), text)
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(value.(bool))
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(int32(value.(int)))
	case protoreflect.Int64Kind:
		if n, ok := value.(int); ok {
			return protoreflect.ValueOfInt64(int64(n))
		}
		n, err := spec.ParseSize(text)
		if err != nil {
			t.Fatal(err)
		}
		return protoreflect.ValueOfInt64(n)
	case protoreflect.DoubleKind:
		if n, ok := value.(int); ok {
			return protoreflect.ValueOfFloat64(float64(n))
		}
		return protoreflect.ValueOfFloat64(value.(float64))
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(text)
	default:
		t.Fatalf("%s: fields of this kind are not read", fd.Name())
	}
	return empty
}
