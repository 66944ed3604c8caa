package main

import (
	"net/mail"
	"strings"
	"time"

	"github.com/posternmail/postern/sdk"
)

// stampSenderID is the result of Sender ID that senderauth leaves.
const stampSenderID = "auth.senderid"

// Tokens of the report that tell of the message's origin.
const (
	tokenSenderID = "SID:SenderIDStatus "
	tokenTime     = "TIME:TimeBasedFeatures" // sent long before, or after, it was received
)

// senderIDWords are the words of Exchange for the results of RFC 8601.
var senderIDWords = map[string]string{
	"pass": "Pass", "neutral": "Neutral", "softfail": "SoftFail", "fail": "Fail",
	"none": "None", "temperror": "TempError", "permerror": "PermError",
}

// senderID is the token of the result that an earlier agent has left; "" without one, and for a word that is no result.
func senderID(e *sdk.DataEvent) string {
	word, ok := senderIDWords[e.Stamp(stampSenderID)]
	if !ok {
		return ""
	}
	return tokenSenderID + word
}

// maxGap between Date and receipt. It is more than a clock in the wrong time zone explains, and more than most mail
// waits in queues.
const maxGap = 24 * time.Hour

// outOfTime reports whether Date is further from the receipt than maxGap. A date that is missing, or cannot be read, says
// nothing of time.
func outOfTime(e *sdk.DataEvent) bool {
	sent, err := mail.ParseDate(strings.TrimSpace(e.Headers.Get("Date")))
	return err == nil && e.Time.Sub(sent).Abs() > maxGap
}
