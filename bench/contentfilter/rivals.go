package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// scores of messages, and the processor time of one.
type scores struct {
	of  map[*message]float64
	one time.Duration
}

// bogofilter learns and judges the same mail. write makes the octets that it gets of a message.
func bogofilter(scratch string, train, test []*message, write func(*message) []byte) (scores, error) {
	dir, err := os.MkdirTemp(scratch, "bogo")
	if err != nil {
		return scores{}, err
	}
	defer os.RemoveAll(dir)
	for flag, spam := range map[string]bool{"-s": true, "-n": false} {
		files, err := writeFiles(filepath.Join(dir, "train"+flag), pick(train, func(m *message) bool { return m.spam == spam }), write)
		if err != nil {
			return scores{}, err
		}
		if _, _, err := runOn(files, "bogofilter", "-C", "-d", dir, flag, "-b"); err != nil {
			return scores{}, err
		}
	}
	files, err := writeFiles(filepath.Join(dir, "test"), test, write)
	if err != nil {
		return scores{}, err
	}
	// All the digits there are: rounded to six, as it prints them by default, most of its scores are 0 or 1.
	lines, used, err := runOn(files, "bogofilter", "-C", "-d", dir, "-T", "-b", "--terse-format=%1.1c %.17g")
	if err != nil {
		return scores{}, err
	}
	return parseScores(lines, test, used)
}

// spamassassin judges by its local rules, without network, without what it could learn.
func spamassassin(scratch string, test []*message) (scores, error) {
	dir, err := os.MkdirTemp(scratch, "sa")
	if err != nil {
		return scores{}, err
	}
	defer os.RemoveAll(dir)
	files, err := writeFiles(filepath.Join(dir, "test"), test, (*message).whole)
	if err != nil {
		return scores{}, err
	}
	program := filepath.Join(dir, "score.pl")
	if err := os.WriteFile(program, []byte(perl), 0o600); err != nil {
		return scores{}, err
	}
	halves := [2][]string{files[:len(files)/2], files[len(files)/2:]} // it is slow enough for two at once
	var lines [2][]string
	var used [2]time.Duration
	var faults [2]error
	var wait sync.WaitGroup
	for i, half := range halves {
		wait.Go(func() { lines[i], used[i], faults[i] = runOn(half, "perl", program, dir) })
	}
	wait.Wait()
	if err := errors.Join(faults[:]...); err != nil {
		return scores{}, err
	}
	return parseScores(append(lines[0], lines[1]...), test, used[0]+used[1])
}

// perl reads names of files and prints their scores: SpamAssassin is started once, not for each message.
const perl = `
use strict;
use Mail::SpamAssassin;
my $sa = Mail::SpamAssassin->new({ local_tests_only => 1, dont_copy_prefs => 1, userstate_dir => $ARGV[0], userprefs_filename => "/dev/null",
	post_config_text => "use_bayes 0\nuse_auto_whitelist 0\n" });
$sa->init(1);
while (my $file = <STDIN>) {
	chomp $file;
	open(my $in, "<", $file) or die "$file: $!";
	my @lines = <$in>;
	close $in;
	my $mail = $sa->parse(\@lines);
	my $status = $sa->check($mail);
	print "$file ", $status->get_score(), "\n";
	$status->finish();
	$mail->finish();
}
`

// writeFiles puts each message into a file of its own, named by its number.
func writeFiles(dir string, all []*message, write func(*message) []byte) ([]string, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	files := make([]string, len(all))
	for i, m := range all {
		files[i] = filepath.Join(dir, strconv.Itoa(i))
		if err := os.WriteFile(files[i], bytes.ReplaceAll(write(m), []byte("\r\n"), []byte("\n")), 0o600); err != nil {
			return nil, err
		}
	}
	return files, nil
}

// runOn runs a program that reads names of files and answers with its lines and the processor time it used.
func runOn(files []string, name string, args ...string) ([]string, time.Duration, error) {
	cmd := exec.Command(name, args...)
	cmd.Stdin = strings.NewReader(strings.Join(files, "\n") + "\n")
	var out, fault bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &fault
	err := cmd.Run()
	if exit, ok := err.(*exec.ExitError); ok && exit.ExitCode() < 3 && name == "bogofilter" {
		err = nil // its exit status is its verdict
	}
	if err != nil {
		return nil, 0, fmt.Errorf("%s: %w\n%s", name, err, fault.Bytes())
	}
	var lines []string
	for s := bufio.NewScanner(&out); s.Scan(); {
		lines = append(lines, s.Text())
	}
	return lines, cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), nil
}

// parseScores of lines that begin with the name of a file and end with its score.
func parseScores(lines []string, test []*message, used time.Duration) (scores, error) {
	s := scores{of: map[*message]float64{}, one: used / time.Duration(max(1, len(test)))}
	for _, line := range lines {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		i, err := strconv.Atoi(filepath.Base(strings.TrimSuffix(fields[0], ":")))
		score, err2 := strconv.ParseFloat(fields[len(fields)-1], 64)
		if err != nil || err2 != nil || i >= len(test) {
			return s, fmt.Errorf("a line that is no score: %q", line)
		}
		s.of[test[i]] = score
	}
	if len(s.of) != len(test) {
		return s, fmt.Errorf("%d scores of %d messages", len(s.of), len(test))
	}
	return s, nil
}
