package agenttest

import (
	"fmt"
	"os"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/posternmail/postern/sdk/agentpb"
)

// inlineBody is the size up to which a body is part of its event, in bytes.
const inlineBody = 32 << 10

// world is a set of processes that get the events in turn, with the tables and stamps of their host.
type world struct {
	agent     *Agent
	processes []*process
	last      int // that answered last
	tables    *tables
	stamps    map[*Session]*stamps
}

func newWorld(a *Agent, processes int) *world {
	return &world{
		agent: a, processes: make([]*process, processes), last: processes - 1, tables: newTables(),
		stamps: map[*Session]*stamps{},
	}
}

func (w *world) launch(i int) error {
	command, environment := w.agent.child()
	dir, err := os.MkdirTemp("", "state")
	if err != nil {
		return err
	}
	defer func() {
		if w.processes[i] == nil {
			os.RemoveAll(dir)
		}
	}()
	p, err := launch(command, environment, dir)
	if err != nil {
		return err
	}
	w.processes[i] = p
	return nil
}

// stop the processes and remove their state.
func (w *world) stop() {
	for _, p := range w.processes {
		if p != nil {
			p.kill()
			os.RemoveAll(p.stateDir)
		}
	}
}

// restart a process after killing it.
func (w *world) restart(i int) error {
	w.processes[i].kill()
	command, environment := w.agent.child()
	p, err := launch(command, environment, w.processes[i].stateDir)
	if err != nil {
		return err
	}
	w.processes[i] = p
	return w.agent.configure(p)
}

// ask the next process. One that needs rows gets the event again.
func (w *world) ask(s *Session, sub *agentpb.Subscription, event *agentpb.Event) (*agentpb.Answer, error) {
	w.last = (w.last + 1) % len(w.processes)
	p := w.processes[w.last]
	e := w.complete(s, sub, event)
	answer, err := p.ask(e, s.body)
	if err != nil || answer.GetNeed() == nil {
		return answer, w.keep(s, event, answer, err)
	}
	e.Needed = true
	e.Rows = append(e.Rows, w.needed(sub, answer.GetNeed())...)
	answer, err = p.ask(e, s.body)
	if err == nil && answer.GetNeed() != nil {
		err = fmt.Errorf("the agent needs rows a second time")
	}
	return answer, w.keep(s, event, answer, err)
}

// keep what the answer says is to be kept.
func (w *world) keep(s *Session, event *agentpb.Event, answer *agentpb.Answer, err error) error {
	if err != nil {
		return err
	}
	for _, write := range answer.GetWrites() {
		if err := w.tables.write(write, w.agent.now); err != nil {
			return err
		}
	}
	for _, stamp := range answer.GetStamps() {
		w.stampsOf(s).set(w.ownName(stamp.GetName()), stamp)
	}
	return nil
}

// ownName of a stamp: the agent's keys get its name in front.
func (w *world) ownName(name string) string {
	if slices.Contains(w.agent.options.info.SharedStamps, name) {
		return name
	}
	return w.agent.options.info.Name + "." + name
}

func (w *world) stampsOf(s *Session) *stamps {
	if w.stamps[s] == nil {
		w.stamps[s] = new(stamps)
	}
	return w.stamps[s]
}

// complete the event with what the subscription asks for.
func (w *world) complete(s *Session, sub *agentpb.Subscription, event *agentpb.Event) *agentpb.Event {
	e := proto.CloneOf(event)
	e.Attempt, e.TimeoutMicros = 1, uint64(answerTimeout.Microseconds())
	e.Headers = wantedFields(sub.GetHeaders(), s.fields(sub.GetView()))
	if len(s.header) == 0 {
		e.Headers = nil
	}
	e.Body = w.bodyOf(s, sub.GetBody(), event)
	for _, name := range sub.GetReadsStamps() {
		e.Stamps = append(e.Stamps, w.stampsOf(s).named(name)...)
	}
	for i, use := range sub.GetTables() {
		e.Rows = append(e.Rows, w.rows(use, uint32(i), event)...)
	}
	return e
}

// wantedFields of the header block.
func wantedFields(need *agentpb.HeaderNeed, all []*agentpb.HeaderField) []*agentpb.HeaderField {
	if need.GetAll() {
		return all
	}
	var wanted []*agentpb.HeaderField
	for _, f := range all {
		if slices.ContainsFunc(need.GetNames(), func(n string) bool { return sameField(f, n) }) {
			wanted = append(wanted, f)
		}
	}
	return wanted
}

// bodyOf the message, as the subscription wants it.
func (w *world) bodyOf(s *Session, need *agentpb.BodyNeed, event *agentpb.Event) *agentpb.Body {
	size := uint64(len(s.body))
	body := &agentpb.Body{Size: size}
	switch {
	case need.GetMode() == agentpb.BodyMode_BODY_MODE_UNSPECIFIED:
		return nil
	case need.GetSkipOver() > 0 && size > need.GetSkipOver():
		body.Skipped = true
	case need.GetMode() == agentpb.BodyMode_BODY_MODE_PREFIX && need.GetPrefixBytes() < size:
		body.Inline, body.Truncated = s.body[:need.GetPrefixBytes()], true
	case size > inlineBody:
		body.Ticket = "body-" + event.GetEventId()
	default:
		body.Inline = s.body
	}
	return body
}
