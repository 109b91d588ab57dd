package main

import (
	"errors"
	"flag"
	"fmt"
	"net"
	"os"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// push copies an archive to a registry. Layers that are there already are not sent again.
func push(args []string) error {
	flags := flag.NewFlagSet("image push", flag.ContinueOnError)
	archive := flags.String("archive", "", "an archive that `image pack` wrote")
	to := flags.String("to", "", "where it goes, with a tag")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *archive == "" || *to == "" || flags.NArg() > 0 {
		return errors.New("--archive and --to are needed, and nothing else")
	}
	reference, err := name.NewTag(*to, name.StrictValidation)
	if err != nil {
		return fmt.Errorf("%q is no image name with a tag: %w", *to, err)
	}
	if reference.Scheme() == "http" && !isLoopback(reference.RegistryStr()) {
		return fmt.Errorf("the registry %q would be spoken to without TLS, which is done on loopback only: give it a name and a certificate", reference.RegistryStr())
	}
	scratch, err := os.MkdirTemp("", "chandler-image-")
	if err != nil {
		return fmt.Errorf("failed to make a scratch folder: %w", err)
	}
	defer os.RemoveAll(scratch)
	image, err := openArchive(*archive, scratch)
	if err != nil {
		return err
	}
	if err := remote.Write(reference, image, remote.WithAuthFromKeychain(authn.DefaultKeychain)); err != nil {
		return fmt.Errorf("failed to push %q (a registry that needs a login takes the one in ~/.docker/config.json, or in the folder DOCKER_CONFIG names): %w", reference, err)
	}
	digest, err := image.Digest()
	if err != nil {
		return fmt.Errorf("failed to compute the image's digest: %w", err)
	}
	fmt.Printf("%s@%s\n", reference, digest)
	return nil
}

func isLoopback(registry string) bool {
	host, _, err := net.SplitHostPort(registry)
	if err != nil {
		host = registry
	}
	address := net.ParseIP(host)
	return host == "localhost" || address != nil && address.IsLoopback()
}
