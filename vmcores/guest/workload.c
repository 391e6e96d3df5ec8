/*
 * The processes that a lab dump holds.
 *
 * Each one puts memory of known kinds at addresses that it writes down, one line a thing, in the
 * file named by argv[1]:
 *
 *     PID ROLE KIND START END NOTE
 *
 * START and END (exclusive) are hexadecimal.  A KIND that this kernel does not offer is written with
 * the address 0 and the reason.  main() leaves when every process sleeps; the processes stay.
 */
#define _GNU_SOURCE
#include <asm/ldt.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef SYS_memfd_secret
#define SYS_memfd_secret 447
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif
#ifndef UFFDIO_POISON
#define UFFD_FEATURE_POISON (1 << 14)
struct uffdio_poison {
	struct uffdio_range range;
	__u64 mode;
	__s64 updated;
};
#define UFFDIO_POISON _IOWR(UFFDIO, 0x08, struct uffdio_poison)
#endif

#define KB(n) ((size_t)(n) << 10)
#define MB(n) ((size_t)(n) << 20)

static int truth = -1;		/* every process appends whole lines to it */
static int ready[2];		/* a byte from each process that has reached its steady state */
static const char *role = "?";

static void note(const char *kind, const void *start, size_t size, const char *format, ...)
{
	char line[512];
	va_list args;
	int n = snprintf(line, sizeof(line), "%d %s %s %016lx %016lx ", getpid(), role, kind,
			 (unsigned long)start, start ? (unsigned long)start + size : 0ul);

	va_start(args, format);
	n += vsnprintf(line + n, sizeof(line) - n - 1, format, args);
	va_end(args);
	line[n++] = '\n';
	if (write(truth, line, n) != n)
		_exit(3);
}

static void absent(const char *kind)
{
	note(kind, NULL, 0, "absent: %s", strerror(errno));
}

/* Fill with a text that says where it is, so that a dump's bytes can be checked against it. */
static void fill(char *p, size_t size, const char *what)
{
	for (size_t off = 0; off + 64 <= size; off += 4096)
		snprintf(p + off, 64, "kvintro %s %016lx", what, (unsigned long)(p + off));
}

static char *map(size_t size, int prot, int flags, int fd)
{
	char *p = mmap(NULL, size, prot, flags, fd, 0);

	return p == MAP_FAILED ? NULL : p;
}

static void name_process(const char *name)
{
	role = name;
	prctl(PR_SET_NAME, name, 0, 0, 0);
}

static void steady(void)
{
	if (write(ready[1], "r", 1) != 1)
		_exit(4);
	for (;;)
		pause();
}

static pid_t spawn(const char *name, void (*body)(void))
{
	pid_t pid = fork();

	if (pid == 0) {
		name_process(name);
		body();
		steady();
	}
	return pid;
}

static pid_t memory_child;
static char *shared, *cow;

static void child_of_memory(void)
{
	fill(cow, 4096, "cow-child");
	note("cow_broken", cow, 4096, "first page written after fork; the next is still shared");
	note("shared_anon", shared, KB(16), "the same pages as in the parent");
}

static void memory(void)
{
	const int rw = PROT_READ | PROT_WRITE, anon = MAP_PRIVATE | MAP_ANONYMOUS;
	char *p, *area;
	int fd;

	p = map(KB(64), rw, anon, -1);
	fill(p, KB(64), "anon");
	note("anon", p, KB(64), "16 pages with content");

	p = map(KB(64), rw, anon, -1);
	fill(p, KB(8), "sparse");
	note("anon_sparse", p, KB(64), "first two pages of 16 touched");

	p = map(KB(16), rw, anon, -1);
	fill(p, KB(16), "none");
	mprotect(p, KB(16), PROT_NONE);
	note("prot_none", p, KB(16), "4 pages with content, then mprotect(PROT_NONE)");

	p = map(KB(16), rw, anon, -1);
	fill(p, KB(16), "readonly");
	mprotect(p, KB(16), PROT_READ);
	note("read_only", p, KB(16), "4 pages with content, then mprotect(PROT_READ)");

	p = map(KB(4), PROT_READ, anon, -1);
	*(volatile char *)p;
	note("zero_page", p, KB(4), "read, never written: the zero page");

	p = map(KB(8), rw | PROT_EXEC, anon, -1);
	fill(p, KB(8), "wx");
	note("user_wx", p, KB(8), "writable and executable");

	/* A whole 2M page needs a 2M-aligned stretch inside a 4M area. */
	area = map(MB(4), rw, anon, -1);
	p = (char *)(((uintptr_t)area + MB(2) - 1) & ~(MB(2) - 1));
	madvise(p, MB(2), MADV_HUGEPAGE);
	fill(p, MB(2), "thp");
	note("thp", p, MB(2), "madvise(MADV_HUGEPAGE), touched");

	area = map(MB(4), rw, anon, -1);
	p = (char *)(((uintptr_t)area + MB(2) - 1) & ~(MB(2) - 1));
	madvise(p, MB(2), MADV_HUGEPAGE);
	fill(p, MB(2), "thp-split");
	mprotect(p + MB(1), KB(16), PROT_READ);
	note("thp_split", p, MB(2), "the same, then 4 pages of it mprotect(PROT_READ): mapped by single pages");

	p = map(MB(2), rw, anon | MAP_HUGETLB, -1);
	if (p && madvise(p, MB(2), MADV_POPULATE_WRITE) && errno != EINVAL) {
		absent("hugetlb");
	} else if (p) {
		fill(p, MB(2), "hugetlb");
		note("hugetlb", p, MB(2), "one 2M page of hugetlbfs");
	} else {
		absent("hugetlb");
	}

	fd = syscall(SYS_memfd_secret, 0);
	if (fd >= 0 && !ftruncate(fd, KB(16)) && (p = map(KB(16), rw, MAP_SHARED, fd))) {
		fill(p, KB(16), "secret");
		note("secret", p, KB(16), "memfd_secret: 4 pages that left the direct map");
	} else {
		absent("secret");
	}

	fd = memfd_create("kvintro", 0);
	if (fd >= 0 && !ftruncate(fd, KB(32)) && (p = map(KB(32), rw, MAP_SHARED, fd))) {
		fill(p, KB(32), "memfd");
		note("memfd", p, KB(32), "shared file mapping of 8 pages");
	}

	fd = open("/private-file", O_RDWR | O_CREAT, 0600);
	if (fd >= 0 && !ftruncate(fd, KB(32))) {
		p = map(KB(32), rw, MAP_SHARED, fd);
		fill(p, KB(32), "file");
		munmap(p, KB(32));
		p = map(KB(32), rw, MAP_PRIVATE, fd);
		for (size_t off = 0; off < KB(32); off += 4096)
			*(volatile char *)(p + off);
		fill(p, 4096, "file-cow");
		note("private_file", p, KB(32), "8 pages of a file, the first written to");
	}

	shared = map(KB(16), rw, MAP_SHARED | MAP_ANONYMOUS, -1);
	fill(shared, KB(16), "shared");
	note("shared_anon", shared, KB(16), "the same pages as in the child");
	cow = map(KB(8), rw, anon, -1);
	fill(cow, KB(8), "cow-parent");
	note("cow", cow, KB(8), "two pages, the child has written to the first");

	p = map(KB(16), rw, anon, -1);
	fill(p, KB(16), "locked");
	if (!mlock(p, KB(16)))
		note("locked", p, KB(16), "mlock");

	memory_child = spawn("kv-child", child_of_memory);
}

static int userfault(__u64 features, char *p, size_t size, __u64 mode)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	struct uffdio_register area = { .range = { (uintptr_t)p, size }, .mode = mode };
	int fd = syscall(SYS_userfaultfd, O_CLOEXEC);

	if (fd < 0 || ioctl(fd, UFFDIO_API, &api) || ioctl(fd, UFFDIO_REGISTER, &area))
		return -1;
	return fd;
}

/* Entries that map nothing and say why (include/linux/swapops.h, PTE_MARKER_*). */
static void markers(void)
{
	const int rw = PROT_READ | PROT_WRITE, anon = MAP_PRIVATE | MAP_ANONYMOUS;
	char *p = map(KB(32), rw, anon, -1);
	int fd = memfd_create("kvintro", 0);

	fill(p, KB(32), "guarded");
	if (madvise(p + KB(8), KB(12), MADV_GUARD_INSTALL))
		absent("guard");
	else
		note("guard", p + KB(8), KB(12), "MADV_GUARD_INSTALL: 3 pages of 8");

	if (fd >= 0 && !ftruncate(fd, KB(32)) && (p = map(KB(32), rw, MAP_SHARED, fd))) {
		struct uffdio_writeprotect wp = {
			.range = { (uintptr_t)p, KB(16) }, .mode = UFFDIO_WRITEPROTECT_MODE_WP,
		};

		fd = userfault(UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM, p, KB(32),
			       UFFDIO_REGISTER_MODE_WP);
		if (fd < 0 || ioctl(fd, UFFDIO_WRITEPROTECT, &wp))
			absent("uffd_wp");
		else
			note("uffd_wp", p, KB(16), "write-protected by userfaultfd, never touched: 4 pages of 8");
	}

	p = map(KB(32), rw, anon, -1);
	fd = userfault(UFFD_FEATURE_POISON, p, KB(32), UFFDIO_REGISTER_MODE_MISSING);
	if (fd >= 0) {
		struct uffdio_poison poison = { .range = { (uintptr_t)p, KB(8) } };

		if (!ioctl(fd, UFFDIO_POISON, &poison)) {
			note("uffd_poison", p, KB(8), "UFFDIO_POISON: 2 pages of 8");
			return;
		}
	}
	absent("uffd_poison");
}

static void write_ldt_entry(unsigned int entry)
{
	struct user_desc desc = {
		.entry_number = entry,
		.base_addr = 0x10000u * (entry + 1),
		.limit = 0xfff,
		.seg_32bit = 1,
		.useable = 1,
	};

	if (syscall(SYS_modify_ldt, 0x11, &desc, sizeof(desc)))
		note("ldt", NULL, 0, "absent: %s", strerror(errno));
	else
		note("ldt", NULL, 0, "write_ldt entry %u base %x limit %x", entry,
		     desc.base_addr, desc.limit);
}

/* Every write_ldt installs a new table in the other slot of the LDT remap: 0, 1, 0, ... */
static void ldt_slot0(void)
{
	write_ldt_entry(0);
}

static void ldt_slot1(void)
{
	write_ldt_entry(0);
	write_ldt_entry(1);
}

static void ldt_big(void)
{
	write_ldt_entry(0);
	write_ldt_entry(7);
	write_ldt_entry(8191);	/* the last: a table of 16 pages */
}

static void ldt_forker(void)
{
	ldt_slot1();
	spawn("kv-ldtkid", ldt_slot0);
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		void (*body)(void);
		int processes;
	} roles[] = {
		{ "kv-memory", memory, 2 },
		{ "kv-markers", markers, 1 },
		{ "kv-ldt0", ldt_slot0, 1 },
		{ "kv-ldt1", ldt_slot1, 1 },
		{ "kv-ldtbig", ldt_big, 1 },
		{ "kv-ldtfork", ldt_forker, 2 },
	};
	int expected = 0;
	char byte;

	if (argc != 2)
		return 2;
	truth = open(argv[1], O_WRONLY | O_CREAT | O_APPEND, 0644);
	if (truth < 0 || pipe(ready))
		return 1;
	for (size_t i = 0; i < sizeof(roles) / sizeof(roles[0]); i++) {
		spawn(roles[i].name, roles[i].body);
		expected += roles[i].processes;
	}
	while (expected > 0 && read(ready[0], &byte, 1) == 1)
		expected--;
	return expected != 0;
}
