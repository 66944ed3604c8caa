package command

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/crypto/bcrypt"
)

func userCommand(a *app) *command {
	return &command{name: "user", short: "Work on the file of those who may authenticate.", subs: []*command{userHashCommand(a)}}
}

func userHashCommand(a *app) *command {
	return &command{
		name: "hash", args: "[NAME]", short: "Read a password and print the line for the users file.", max: 1,
		long: "The password comes from standard input: typed without being shown, or the first line of what is piped.\n" +
			"Without NAME only the hash is printed (bcrypt).",
		run: func(ctx context.Context, args []string) error {
			if len(args) == 1 && (args[0] == "" || strings.ContainsAny(args[0], ": \t")) {
				return &misuse{text: fmt.Sprintf("name %q: it may hold neither colon nor blank", printable(args[0]))}
			}
			password, err := a.readPassword(ctx)
			if err != nil {
				return err
			}
			hash, err := hashPassword(password)
			if err != nil {
				return err
			}
			if len(args) == 1 {
				hash = args[0] + ":" + hash
			}
			a.printf("%s\n", hash)
			return nil
		},
	}
}

func hashPassword(password string) (string, error) {
	if password == "" {
		return "", errors.New("the password is empty")
	}
	hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.DefaultCost)
	if errors.Is(err, bcrypt.ErrPasswordTooLong) {
		return "", fmt.Errorf("the password has %d bytes, bcrypt takes 72", len(password))
	}
	if err != nil {
		return "", fmt.Errorf("hashing the password: %w", err)
	}
	return string(hash), nil
}
