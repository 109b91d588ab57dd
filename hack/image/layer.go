package main

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// entry is one file, folder or link of a layer. Everything belongs to root; nothing in an image is written to at run time.
type entry struct {
	path   string // in the image, absolute
	mode   int64
	folder bool
	link   string // where a link points to; else
	source string // the file on this machine, or
	text   []byte // the content itself
}

func (e entry) open() (io.ReadCloser, int64, error) {
	if e.source == "" {
		return io.NopCloser(bytes.NewReader(e.text)), int64(len(e.text)), nil
	}
	file, err := os.Open(e.source)
	if err != nil {
		return nil, 0, err
	}
	info, err := file.Stat()
	if err != nil {
		file.Close()
		return nil, 0, err
	}
	return file, info.Size(), nil
}

// baseEntries are the files that every image has: what TLS, DNS and a look at one's own name need.
func baseEntries() ([]entry, error) {
	certificates, err := trustedCertificates()
	if err != nil {
		return nil, err
	}
	return []entry{
		{path: "/tmp", mode: 0o1777, folder: true},
		{path: "/etc/passwd", mode: 0o644, text: []byte("root:x:0:0:root:/:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/tmp:/sbin/nologin\n")},
		{path: "/etc/group", mode: 0o644, text: []byte("root:x:0:\nnonroot:x:65532:\n")},
		{path: "/etc/nsswitch.conf", mode: 0o644, text: []byte("hosts: files dns\n")},
		{path: certificatesPath, mode: 0o644, text: certificates},
	}, nil
}

// collectEntries walks the additions. An addition that is a link itself is followed; links in a folder stay links.
// Other special files are refused.
func collectEntries(additions []addition) ([]entry, error) {
	var entries []entry
	for _, added := range additions {
		err := filepath.WalkDir(added.source, func(found string, _ fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			look := os.Lstat
			if found == added.source {
				look = os.Stat
			}
			info, err := look(found)
			if err != nil {
				return err
			}
			relative, err := filepath.Rel(added.source, found)
			if err != nil {
				return err
			}
			target := path.Join(added.destination, filepath.ToSlash(relative))
			switch {
			case info.IsDir():
				entries = append(entries, entry{path: target, mode: 0o755, folder: true})
			case info.Mode().IsRegular():
				entries = append(entries, entry{path: target, mode: modeFor(added, info), source: found})
			case info.Mode()&fs.ModeSymlink != 0:
				link, err := os.Readlink(found)
				if err != nil {
					return err
				}
				entries = append(entries, entry{path: target, mode: 0o777, link: link})
			default:
				return fmt.Errorf("%s is neither a file nor a folder", found)
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("failed to add %q: %w", added.source, err)
		}
	}
	return entries, nil
}

func modeFor(added addition, info fs.FileInfo) int64 {
	if added.mode != 0 {
		return added.mode
	}
	if info.Mode()&0o100 != 0 {
		return 0o755
	}
	return 0o644
}

// fileDate is the date of every file in every image. A layer so depends on its content alone,
// and a node that has it from an older image does not pull it again. The image's own date is in its configuration.
var fileDate = time.Unix(0, 0)

// makeLayer writes the entries, their parent folders included, in the order of their paths.
func makeLayer(entries []entry, file string, compressed bool) (v1.Layer, error) {
	out, err := os.Create(file)
	if err != nil {
		return nil, fmt.Errorf("failed to create a layer: %w", err)
	}
	defer out.Close()
	archive := tar.NewWriter(out)
	for _, item := range withParents(entries) {
		if err := writeEntry(archive, item); err != nil {
			return nil, fmt.Errorf("failed to write %q into a layer: %w", item.path, err)
		}
	}
	if err := archive.Close(); err != nil {
		return nil, fmt.Errorf("failed to finish a layer: %w", err)
	}
	if !compressed {
		// tarball.LayerFromFile compresses with gzip whatever it is told, which a node then refuses under this media type.
		content, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("failed to read a layer back: %w", err)
		}
		return static.NewLayer(content, types.OCIUncompressedLayer), nil
	}
	layer, err := tarball.LayerFromFile(file, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, fmt.Errorf("failed to read a layer back: %w", err)
	}
	return layer, nil
}

// withParents adds the folders above each entry. Of two entries with one path, the later wins.
func withParents(entries []entry) []entry {
	byPath := map[string]entry{}
	for _, item := range entries {
		for parent := path.Dir(item.path); parent != "/"; parent = path.Dir(parent) {
			if _, known := byPath[parent]; !known {
				byPath[parent] = entry{path: parent, mode: 0o755, folder: true}
			}
		}
		byPath[item.path] = item
	}
	all := make([]entry, 0, len(byPath))
	for _, item := range byPath {
		all = append(all, item)
	}
	slices.SortFunc(all, func(a, b entry) int { return strings.Compare(a.path, b.path) })
	return all
}

func writeEntry(archive *tar.Writer, item entry) error {
	header := &tar.Header{Name: strings.TrimPrefix(item.path, "/"), Mode: item.mode, ModTime: fileDate, Typeflag: tar.TypeReg, Format: tar.FormatPAX}
	if item.folder {
		header.Name += "/"
		header.Typeflag = tar.TypeDir
		return archive.WriteHeader(header)
	}
	if item.link != "" {
		header.Typeflag, header.Linkname = tar.TypeSymlink, item.link
		return archive.WriteHeader(header)
	}
	content, size, err := item.open()
	if err != nil {
		return err
	}
	defer content.Close()
	header.Size = size
	if err := archive.WriteHeader(header); err != nil {
		return err
	}
	_, err = io.Copy(archive, content)
	return err
}

// checkProgram refuses what would only fail on the node: a program that is absent, built for another
// architecture, or in want of a loader or of libraries that the image does not have.
func checkProgram(recipe recipe, layers [][]entry) error {
	machines := map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}
	present := map[string]entry{}
	for _, layer := range layers {
		for _, item := range layer {
			present[item.path] = item
		}
	}
	program, found := present[recipe.entrypoint]
	if !found {
		return fmt.Errorf("nothing was added at the entry point %q", recipe.entrypoint)
	}
	binary, err := elf.Open(program.source)
	if err != nil {
		return fmt.Errorf("failed to read the program %q: %w", program.source, err)
	}
	defer binary.Close()
	if want, known := machines[recipe.arch]; !known || binary.Machine != want {
		return fmt.Errorf("the program %q is built for %s, the image for %s", program.source, binary.Machine, recipe.arch)
	}
	for _, header := range binary.Progs {
		if header.Type != elf.PT_INTERP {
			continue
		}
		loader, err := io.ReadAll(header.Open())
		if err != nil {
			return fmt.Errorf("failed to read the loader's name in %q: %w", program.source, err)
		}
		wanted := strings.TrimRight(string(loader), "\x00")
		if _, found := present[wanted]; !found {
			return fmt.Errorf("the program %q is not static: it needs %s, which the image does not have", program.source, wanted)
		}
		return checkLibraries(program.source, present)
	}
	return nil
}

// checkLibraries refuses a dynamic program where a library that it names, or that one of these names, is nowhere in the image.
func checkLibraries(program string, present map[string]entry) error {
	byName := map[string]entry{}
	for place, item := range present {
		byName[path.Base(place)] = item
	}
	seen := map[string]bool{}
	for open := []string{program}; len(open) > 0; open = open[1:] {
		binary, err := elf.Open(open[0])
		if err != nil {
			return fmt.Errorf("failed to read the library %q: %w", open[0], err)
		}
		wanted, err := binary.ImportedLibraries()
		binary.Close()
		if err != nil {
			return fmt.Errorf("failed to read what %q is linked to: %w", open[0], err)
		}
		for _, name := range wanted {
			library, found := byName[name]
			if !found {
				return fmt.Errorf("%q needs %s, which the image does not have", open[0], name)
			}
			if !seen[name] && library.source != "" {
				seen[name] = true
				open = append(open, library.source)
			}
		}
	}
	return nil
}
