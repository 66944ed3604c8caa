package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/posternmail/postern/sdk"
)

// Dump writes events to events.jsonl in its state folder.
type Dump struct {
	file *os.File
}

// New opens the file and asks for all that an event can bring. Answers hold nothing but continue.
func New(cfg Config, r *sdk.Registrar) (*Dump, error) {
	for kind := sdk.OnConnect; kind <= sdk.OnFeedback; kind++ {
		r.On(kind, sdk.MayChange(), sdk.ReadsHeaders())
		if kind > sdk.OnConnect { // before it nobody can have left a stamp
			r.On(kind, sdk.ReadsStamps("*"))
		}
	}
	for _, kind := range []sdk.EventKind{sdk.OnEndOfData, sdk.OnSubmitted, sdk.OnResolved, sdk.OnRouted, sdk.OnCategorized} {
		r.On(kind, sdk.Body(sdk.Prefix(cfg.Body), sdk.Current))
	}
	r.OnSchedule(sdk.Every(time.Hour))
	if r.Validating() {
		return &Dump{}, nil
	}
	file, err := os.OpenFile(filepath.Join(r.StateDir(), "events.jsonl"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot open the file for the events: %w", err)
	}
	return &Dump{file}, nil
}

// Close is called when a new configuration has replaced this one and its last event was answered.
func (d *Dump) Close() error {
	if d.file == nil {
		return nil
	}
	return d.file.Close()
}

// write the event as it came from the host, one line.
func (d *Dump) write(e sdk.Subject) sdk.Verdict {
	line, err := json.Marshal(readable(e.Common().Proto().ProtoReflect()))
	if err != nil {
		return sdk.Fault(fmt.Errorf("cannot write the event: %w", err))
	}
	if _, err := d.file.Write(append(line, '\n')); err != nil { // one write: processes share the file
		return sdk.Fault(fmt.Errorf("cannot write the event: %w", err))
	}
	return sdk.Continue()
}

// readable is the message with its fields by name, for JSON. Mail is octets; where they are UTF-8 they become text,
// elsewhere base64.
func readable(m protoreflect.Message) map[string]any {
	object := map[string]any{}
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if !f.IsList() {
			object[string(f.Name())] = readableValue(f, v)
			return true
		}
		var list []any
		for i := range v.List().Len() {
			list = append(list, readableValue(f, v.List().Get(i)))
		}
		object[string(f.Name())] = list
		return true
	})
	return object
}

// addresses of hosts are octets that are to be read as IP addresses.
var addresses = map[protoreflect.Name]bool{"client": true, "peer": true, "local": true}

func readableValue(f protoreflect.FieldDescriptor, v protoreflect.Value) any {
	switch f.Kind() {
	case protoreflect.MessageKind:
		return readable(v.Message())
	case protoreflect.EnumKind:
		return string(f.Enum().Values().ByNumber(v.Enum()).Name())
	case protoreflect.BytesKind:
		if ip, ok := netip.AddrFromSlice(v.Bytes()); ok && addresses[f.Name()] {
			return ip.String()
		}
		if utf8.Valid(v.Bytes()) {
			return string(v.Bytes())
		}
	}
	return v.Interface()
}
