package session

import (
	"fmt"

	"github.com/posternmail/postern/host/internal/envelope"
)

// Replies of the host. Codes by RFC 5321 section 4.2.4 and 4.3.2, enhanced codes by RFC 3463; the texts are those that
// operators of Exchange's Edge Transport know, where it has one.
var (
	senderOK    = envelope.Reply{Code: 250, Enhanced: "2.1.0", Text: "Sender OK"}
	recipientOK = envelope.Reply{Code: 250, Enhanced: "2.1.5", Text: "Recipient OK"}
	noopOK      = envelope.Reply{Code: 250, Enhanced: "2.0.0", Text: "OK"}
	resetOK     = envelope.Reply{Code: 250, Enhanced: "2.0.0", Text: "Resetting"}
	goodbye     = envelope.Reply{Code: 221, Enhanced: "2.0.0", Text: "Service closing transmission channel"}
	startInput  = envelope.Reply{Code: 354, Text: "Start mail input; end with <CRLF>.<CRLF>"}
	helpText    = envelope.Reply{Code: 214, Enhanced: "2.0.0", Text: "This server speaks SMTP as in RFC 5321"}
	cannotVrfy  = envelope.Reply{Code: 252, Enhanced: "2.1.5", Text: "Cannot VRFY user"}
	authOK      = envelope.Reply{Code: 235, Enhanced: "2.7.0", Text: "Authentication successful"}

	unrecognized    = envelope.Reply{Code: 500, Enhanced: "5.3.3", Text: "Unrecognized command"}
	noExpn          = envelope.Reply{Code: 502, Enhanced: "5.3.3", Text: "Command not implemented"}
	helloFirst      = envelope.Reply{Code: 503, Enhanced: "5.5.2", Text: "Send hello first"}
	needRcpt        = envelope.Reply{Code: 503, Enhanced: "5.5.2", Text: "Need rcpt command"}
	needQuit        = envelope.Reply{Code: 503, Enhanced: "5.5.1", Text: "Only QUIT is accepted"}
	senderGiven     = envelope.Reply{Code: 503, Enhanced: "5.5.1", Text: "Sender already specified"}
	inTransaction   = envelope.Reply{Code: 503, Enhanced: "5.5.1", Text: "Not permitted during a mail transaction"}
	inChunks        = envelope.Reply{Code: 503, Enhanced: "5.5.1", Text: "Not permitted between BDAT chunks"}
	noDomain        = envelope.Reply{Code: 501, Enhanced: "5.5.4", Text: "Domain name required"}
	noArguments     = envelope.Reply{Code: 501, Enhanced: "5.5.4", Text: "No argument is permitted"}
	tlsRequired     = envelope.Reply{Code: 530, Enhanced: "5.7.0", Text: "Must issue a STARTTLS command first"}
	tlsActive       = envelope.Reply{Code: 503, Enhanced: "5.5.1", Text: "TLS is active already"}
	tlsMissing      = envelope.Reply{Code: 502, Enhanced: "5.5.1", Text: "STARTTLS is not offered"}
	authMissing     = envelope.Reply{Code: 502, Enhanced: "5.5.1", Text: "AUTH is not offered"}
	authNeedsTLS    = envelope.Reply{Code: 538, Enhanced: "5.7.11", Text: "Encryption required for requested authentication mechanism"}
	authMechanism   = envelope.Reply{Code: 504, Enhanced: "5.7.4", Text: "Unrecognized authentication type"}
	authFailed      = envelope.Reply{Code: 535, Enhanced: "5.7.8", Text: "Authentication unsuccessful"}
	authMalformed   = envelope.Reply{Code: 501, Enhanced: "5.5.2", Text: "Malformed authentication response"}
	authUnavailable = envelope.Reply{Code: 454, Enhanced: "4.7.0", Text: "Temporary authentication failure"}
	notPermitted    = envelope.Reply{Code: 530, Enhanced: "5.7.1", Text: "Client was not authenticated"}
	badSender       = envelope.Reply{Code: 501, Enhanced: "5.1.7", Text: "Invalid sender address"}
	badRecipient    = envelope.Reply{Code: 501, Enhanced: "5.1.3", Text: "Invalid recipient address"}
	senderUTF8      = envelope.Reply{Code: 553, Enhanced: "5.6.7", Text: "Sender address needs SMTPUTF8"}
	recipientUTF8   = envelope.Reply{Code: 553, Enhanced: "5.6.7", Text: "Recipient address needs SMTPUTF8"}
	requireTLS      = envelope.Reply{Code: 530, Enhanced: "5.7.10", Text: "REQUIRETLS needs TLS"}
	tooLarge        = envelope.Reply{Code: 552, Enhanced: "5.3.4", Text: "Message size exceeds fixed maximum message size"}
	headerTooLarge  = envelope.Reply{Code: 552, Enhanced: "5.3.4", Text: "Header size exceeds fixed maximum size"}
	headerLine      = envelope.Reply{Code: 554, Enhanced: "5.6.0", Text: "Header line longer than 998 octets"}
	headerFold      = envelope.Reply{Code: 554, Enhanced: "5.6.0", Text: "Message header begins with white space"}
	headerNUL       = envelope.Reply{Code: 554, Enhanced: "5.6.0", Text: "NUL in message header"}
	tooManyRcpts    = envelope.Reply{Code: 452, Enhanced: "4.5.3", Text: "Too many recipients"}
	unableToRelay   = envelope.Reply{Code: 550, Enhanced: "5.7.1", Text: "Unable to relay"}
	mailLoop        = envelope.Reply{Code: 554, Enhanced: "5.4.6", Text: "Hop count exceeded - possible mail loop"}
	tooManyErrors   = envelope.Reply{Code: 421, Enhanced: "4.7.0", Text: "Too many errors on this connection, closing transmission channel"}
	tooManyMessages = envelope.Reply{Code: 421, Enhanced: "4.4.2", Text: "Message submission rate for this client has exceeded the configured limit"}
	notSMTP         = envelope.Reply{Code: 421, Enhanced: "4.7.0", Text: "This is an SMTP server, closing transmission channel"}
	dropped         = envelope.Reply{Code: 421, Enhanced: "4.7.0", Text: "Closing transmission channel"}
	noResources     = envelope.Reply{Code: 452, Enhanced: "4.3.1", Text: "Insufficient system resources"}
	notKept         = envelope.Reply{Code: 451, Enhanced: "4.3.0", Text: "Message could not be kept, try again later"}
	failedInside    = envelope.Reply{Code: 421, Enhanced: "4.3.0", Text: "Internal error, closing transmission channel"}
)

// syntax is the refusal of a line that is no command.
func syntax(fault string) envelope.Reply {
	return envelope.Reply{Code: 500, Enhanced: "5.5.2", Text: fault}
}

// ambiguous is the refusal of a message with a CR or LF that stands alone.
func ambiguous(fault string) envelope.Reply {
	return envelope.Reply{Code: 554, Enhanced: "5.6.11", Text: fault}
}

// chunkOK answers a chunk of BDAT.
func chunkOK(size int64) envelope.Reply {
	return envelope.Reply{Code: 250, Enhanced: "2.6.0", Text: fmt.Sprintf("%d octets received", size)}
}

// queued is the reply after which the message is ours.
func queued(messageID, id string) envelope.Reply {
	text := "[" + id + "] Queued mail for delivery"
	if messageID != "" {
		text = messageID + " " + text
	}
	return envelope.Reply{Code: 250, Enhanced: "2.6.0", Text: text}
}

// isProtocolError reports whether a refusal counts against MaxProtocolErrors: syntax, sequence, unknown commands.
func isProtocolError(code int) bool { return code >= 500 && code <= 504 || code == 555 }
