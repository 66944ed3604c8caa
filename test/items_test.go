package test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/posternmail/postern/test/rig"
)

// suffered is what operators of other mail servers with filters outside of the process suffer from most, by the number
// in the notes that this project was started with, and the tests that show it impossible here.
var suffered = []struct {
	item  int
	what  string
	tests []string // "folder/TestName", or "folder/TestName: row"
}{
	{1, "a filter exits and the whole server stops", []string{"test/TestContainment: item 1", "test/TestDeaths", "test/TestDeathsElsewhere"}},
	{2, "a poison message kills the filter again and again", []string{"test/TestPoison", "test/TestPoisonIsReleased", "host/internal/agent/TestGuiltIsRemembered"}},
	{3, "all processes live, none answers", []string{"test/TestNobodyAnswers", "test/TestContainment: item 3", "host/internal/agent/TestHang"}},
	{4, "the filter dies and the message passes unseen", []string{"test/TestSkipIsAVerdict", "test/TestHold", "test/TestContainment: item 4"}},
	{5, "an exception passes the message", []string{"test/TestContainment: item 5"}},
	{6, "messages are accepted with an empty body", []string{"test/TestContainment: item 6", "host/internal/pipeline/TestSegments", "host/internal/agent/TestBodies"}},
	{7, "later filters do not see what earlier ones changed", []string{"host/internal/pipeline/TestStagedEqualsSerial", "host/internal/pipeline/TestViews"}},
	{8, "filters get decoded text instead of the octets", []string{"host/internal/pipeline/TestViews", "host/internal/agent/TestBodies"}},
	{9, "a message is larger than what a call takes", []string{"host/internal/agent/TestMessageSizes", "host/internal/pipeline/TestLargeEventsComeInParts", "test/TestDeaths"}},
	{10, "messages stay in the queue for days beyond their time", []string{"host/internal/queue/TestExpiryMakesDue", "host/TestWhatWaitsForAnAgentThatIsThereIsTriedAgain"}},
	{11, "one record that cannot be read stops the queue", []string{"host/internal/queue/TestUnreadableIsParked", "host/internal/queue/TestUnknownVersion"}},
	{12, "a torn file after a power cut ends every start", []string{"host/internal/queue/TestPowerCut", "test/TestCrash"}},
	{13, "one call that waits blocks all connections", []string{"test/TestOneAgentBlocksNobody", "test/TestSleeperHoldsNobodyBack"}},
	{14, "a timeout has no owner", []string{"test/TestContainment: item 14"}},
	{15, "a start that fails half-way cannot be repeated", []string{"test/TestFailedAgent", "host/internal/agent/TestFailed"}},
	{16, "nobody is told of a crash, and the health check stays well", []string{"test/TestFailedAgent", "test/TestNeverReady"}},
	{17, "each crash of a filter leaks memory of the host", []string{"host/internal/agent/TestNothingLeaks"}},
	{18, "filters outlive a host that was killed", []string{"test/TestAgentsEndWithTheHost", "host/internal/agent/TestNoOrphans"}},
	{19, "a stranger's process is killed by its number", []string{"host/internal/agent/TestStopping", "host/internal/agent/TestAttach"}},
	{20, "what is in flight during an upgrade is undefined", []string{"host/internal/agent/TestRestart"}},
	{21, "two versions want the same port", []string{"host/internal/agent/TestRestart"}},
	{28, "a degraded decision is not logged", []string{"test/TestSkipIsAVerdict", "host/internal/agent/TestComplaints"}},
	{29, "a dependency that is away becomes a refusal", []string{"test/TestContainment: item 29"}},
	{30, "large mail misses its deadlines", []string{"sdk/TestProgress", "host/internal/agent/TestFailures", "host/internal/pipeline/TestBudget"}},
	{31, "load fills the memory", []string{"test/TestOneAgentBlocksNobody", "host/internal/agent/TestBytesAreBounded", "host/internal/pipeline/TestFullQueueOfFactsDropsAndCounts"}},
	{32, "a place that leaks refuses mail until a restart", []string{"host/internal/agent/TestNoPlaceLeaks", "test/TestOneAgentBlocksNobody"}},
	{33, "a next hop stays unreachable until a restart", []string{"host/internal/delivery/TestDeadIdleConnectionIsReplaced", "host/internal/delivery/TestFailover"}},
	{34, "a breaker stays open for ever", []string{"test/TestBreakerOpensAndCloses", "host/internal/agent/TestBreaker", "host/internal/agent/TestFailedIsTriedAgain"}},
	{35, "bodies go line by line, and long lines are cut", []string{"host/internal/agent/TestBodies", "plugins/mock/TestLargeBody"}},
	{36, "one filter of several in a loop stops the banners", []string{"test/TestOneAgentBlocksNobody"}},
	{37, "a mistake of a plugin ends the process that owns the sockets", []string{"test/TestContainment: item 37", "host/internal/session/TestPanicCostsOneSession", "host/internal/session/FuzzSession"}},
	{38, "a graceful restart cuts long sessions", []string{"host/internal/session/TestShutdown", "host/TestStopFinishesDeliveries"}},
	{39, "a reload ends the server", []string{"host/internal/pipeline/TestPlanStaysUntilMail"}},
}

// TestEveryItemIsShown: the tests that the table names are there.
func TestEveryItemIsShown(t *testing.T) {
	root, err := rig.Root()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range suffered {
		for _, name := range s.tests {
			place, row, _ := strings.Cut(name, ": ")
			text := testsIn(t, filepath.Join(root, filepath.Dir(place)))
			if !strings.Contains(text, "func "+filepath.Base(place)+"(") || row != "" && !strings.Contains(text, "\""+row+": ") {
				t.Errorf("item %d, %s: there is no %s", s.item, s.what, name)
			}
		}
	}
}

// testsIn is the text of the tests of a folder.
func testsIn(t *testing.T, folder string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(folder, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(text)
	}
	return all.String()
}
