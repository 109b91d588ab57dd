// Program image makes and pushes the container images of Chandler without a container engine.
//
// `pack` turns files into one image archive, the same bytes for the same input on every machine.
// `push` copies such an archive to a registry, with the login that `docker login` or its like has left.
// It never runs anything inside an image and never reads the clock.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
)

const usage = `usage:
  image pack --out FILE.tar --name REF... [flags]   make an image archive and print its digest
  image push --archive FILE.tar --to REF            copy an archive to a registry and print REF@DIGEST
`

func main() {
	if err := run(os.Args[1:]); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintf(os.Stderr, "image: %v\n", err)
		}
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return errors.New("no command given\n" + usage)
	}
	switch args[0] {
	case "pack":
		return pack(args[1:])
	case "push":
		return push(args[1:])
	case "help", "-h", "--help":
		fmt.Print(usage)
		return nil
	}
	return fmt.Errorf("unknown command %q\n%s", args[0], usage)
}
