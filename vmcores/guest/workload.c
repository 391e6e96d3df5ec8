/*
 * The processes that a lab dump holds.
 *
 *     workload FILE
 *
 * FILE takes a line for each thing (process.h).  main() leaves when every process sleeps; the processes stay.
 */
#define _GNU_SOURCE
#include "process.h"

#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#ifdef __x86_64__
#include <asm/ldt.h>
#endif

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

static pid_t memory_child;
static char *shared, *cow;

static void child_of_memory(void)
{
	fill(cow, page, "cow-child");
	note("cow_broken", cow, page, "first page written after fork; the next is still shared");
	note("shared_anon", shared, PAGES(4), "the same pages as in the parent");
}

static void memory(void)
{
	const int rw = PROT_READ | PROT_WRITE, anon = MAP_PRIVATE | MAP_ANONYMOUS;
	char *p, *area;
	int fd;

	p = map(PAGES(16), rw, anon, -1);
	fill(p, PAGES(16), "anon");
	note("anon", p, PAGES(16), "16 pages with content");

	p = map(PAGES(16), rw, anon, -1);
	fill(p, PAGES(2), "sparse");
	note("anon_sparse", p, PAGES(16), "first two pages of 16 touched");

	p = map(PAGES(4), rw, anon, -1);
	fill(p, PAGES(4), "none");
	mprotect(p, PAGES(4), PROT_NONE);
	note("prot_none", p, PAGES(4), "4 pages with content, then mprotect(PROT_NONE)");

	p = map(PAGES(4), rw, anon, -1);
	fill(p, PAGES(4), "readonly");
	mprotect(p, PAGES(4), PROT_READ);
	note("read_only", p, PAGES(4), "4 pages with content, then mprotect(PROT_READ)");

	p = map(PAGES(1), PROT_READ, anon, -1);
	*(volatile char *)p;
	note("zero_page", p, PAGES(1), "read, never written: the zero page");

	p = map(PAGES(2), rw | PROT_EXEC, anon, -1);
	fill(p, PAGES(2), "wx");
	note("user_wx", p, PAGES(2), "writable and executable");

	/* A whole huge page needs an aligned stretch inside an area of twice its size. */
	area = map(2 * HUGE, rw, anon, -1);
	p = (char *)(((uintptr_t)area + HUGE - 1) & ~(HUGE - 1));
	madvise(p, HUGE, MADV_HUGEPAGE);
	fill(p, HUGE, "thp");
	note("thp", p, HUGE, "madvise(MADV_HUGEPAGE), touched");

	area = map(2 * HUGE, rw, anon, -1);
	p = (char *)(((uintptr_t)area + HUGE - 1) & ~(HUGE - 1));
	madvise(p, HUGE, MADV_HUGEPAGE);
	fill(p, HUGE, "thp-split");
	mprotect(p + HUGE / 2, PAGES(4), PROT_READ);
	note("thp_split", p, HUGE, "the same, then 4 pages of it mprotect(PROT_READ): mapped by single pages");

	p = map(HUGE, rw, anon | MAP_HUGETLB, -1);
	if (p && madvise(p, HUGE, MADV_POPULATE_WRITE) && errno != EINVAL) {
		absent("hugetlb");
	} else if (p) {
		fill(p, HUGE, "hugetlb");
		note("hugetlb", p, HUGE, "one page of hugetlbfs, of the default size");
	} else {
		absent("hugetlb");
	}

	fd = syscall(SYS_memfd_secret, 0);
	if (fd >= 0 && !ftruncate(fd, PAGES(4)) && (p = map(PAGES(4), rw, MAP_SHARED, fd))) {
		fill(p, PAGES(4), "secret");
		note("secret", p, PAGES(4), "memfd_secret: 4 pages that left the direct map");
	} else {
		absent("secret");
	}

	fd = memfd_create("kvintro", 0);
	if (fd >= 0 && !ftruncate(fd, PAGES(8)) && (p = map(PAGES(8), rw, MAP_SHARED, fd))) {
		fill(p, PAGES(8), "memfd");
		note("memfd", p, PAGES(8), "shared file mapping of 8 pages");
	}

	fd = open("/private-file", O_RDWR | O_CREAT, 0600);
	if (fd >= 0 && !ftruncate(fd, PAGES(8))) {
		p = map(PAGES(8), rw, MAP_SHARED, fd);
		fill(p, PAGES(8), "file");
		munmap(p, PAGES(8));
		p = map(PAGES(8), rw, MAP_PRIVATE, fd);
		for (size_t off = 0; off < PAGES(8); off += page)
			*(volatile char *)(p + off);
		fill(p, page, "file-cow");
		note("private_file", p, PAGES(8), "8 pages of a file, the first written to");
	}

	shared = map(PAGES(4), rw, MAP_SHARED | MAP_ANONYMOUS, -1);
	fill(shared, PAGES(4), "shared");
	note("shared_anon", shared, PAGES(4), "the same pages as in the child");
	cow = map(PAGES(2), rw, anon, -1);
	fill(cow, PAGES(2), "cow-parent");
	note("cow", cow, PAGES(2), "two pages, the child has written to the first");

	p = map(PAGES(4), rw, anon, -1);
	fill(p, PAGES(4), "locked");
	if (!mlock(p, PAGES(4)))
		note("locked", p, PAGES(4), "mlock");

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
	char *p = map(PAGES(8), rw, anon, -1);
	int fd = memfd_create("kvintro", 0);

	fill(p, PAGES(8), "guarded");
	if (madvise(p + PAGES(2), PAGES(3), MADV_GUARD_INSTALL))
		absent("guard");
	else
		note("guard", p + PAGES(2), PAGES(3), "MADV_GUARD_INSTALL: 3 pages of 8");

	if (fd >= 0 && !ftruncate(fd, PAGES(8)) && (p = map(PAGES(8), rw, MAP_SHARED, fd))) {
		struct uffdio_writeprotect wp = {
			.range = { (uintptr_t)p, PAGES(4) }, .mode = UFFDIO_WRITEPROTECT_MODE_WP,
		};

		fd = userfault(UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM, p, PAGES(8),
			       UFFDIO_REGISTER_MODE_WP);
		if (fd < 0 || ioctl(fd, UFFDIO_WRITEPROTECT, &wp))
			absent("uffd_wp");
		else
			note("uffd_wp", p, PAGES(4), "write-protected by userfaultfd, never touched: 4 pages of 8");
	}

	p = map(PAGES(8), rw, anon, -1);
	fd = userfault(UFFD_FEATURE_POISON, p, PAGES(8), UFFDIO_REGISTER_MODE_MISSING);
	if (fd >= 0) {
		struct uffdio_poison poison = { .range = { (uintptr_t)p, PAGES(2) } };

		if (!ioctl(fd, UFFDIO_POISON, &poison)) {
			note("uffd_poison", p, PAGES(2), "UFFDIO_POISON: 2 pages of 8");
			return;
		}
	}
	absent("uffd_poison");
}

#ifdef __x86_64__
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
#endif

static const struct role roles[] = {
	{ "kv-memory", memory, 2 },
	{ "kv-markers", markers, 1 },
#ifdef __x86_64__
	{ "kv-ldt0", ldt_slot0, 1 },
	{ "kv-ldt1", ldt_slot1, 1 },
	{ "kv-ldtbig", ldt_big, 1 },
	{ "kv-ldtfork", ldt_forker, 2 },
#endif
};

int main(int argc, char **argv)
{
	return argc == 2 ? play(argv[1], roles, ARRAY_SIZE(roles)) : 2;
}
