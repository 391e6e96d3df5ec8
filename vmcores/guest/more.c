/*
 * More kinds of memory than guest/workload.c has, for guests of arm64 and riscv64.
 *
 *     more WORKLOAD
 *
 * Swap must be on, and pages of every size of hugetlbfs be there to be had. main() leaves when every process
 * sleeps; the processes stay.
 */
#define _GNU_SOURCE
#include "process.h"

#include <dirent.h>
#include <sys/auxv.h>

#define PROT_BTI 0x10		/* arch/arm64/include/uapi/asm/mman.h */
#define PROT_MTE 0x20
#define TAGGED_ADDR_ENABLE 1
#define TAGS_CHECKED_SYNC 2	/* PR_MTE_TCF_SYNC */
#define TAG_SHIFT 56
#define SWAPPED (1ull << 62)
#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif
#ifndef MAP_HUGE_SHIFT
#define MAP_HUGE_SHIFT 26
#endif

static const int rw = PROT_READ | PROT_WRITE, anon = MAP_PRIVATE | MAP_ANONYMOUS;

/* Each size that the kernel offers: of one entry, and of a run of contiguous ones. */
static void hugetlb(void)
{
	DIR *sizes = opendir("/sys/kernel/mm/hugepages");
	struct dirent *entry;
	unsigned long kb;

	while (sizes && (entry = readdir(sizes))) {
		char kind[32], *p;
		size_t size;

		if (sscanf(entry->d_name, "hugepages-%lukB", &kb) != 1)
			continue;
		size = kb << 10;
		snprintf(kind, sizeof(kind), "hugetlb_%luk", kb);
		p = map(size, rw, anon | MAP_HUGETLB | __builtin_ctzl(size) << MAP_HUGE_SHIFT, -1);
		if (!p || (madvise(p, size, MADV_POPULATE_WRITE) && errno != EINVAL)) {
			absent(kind);
			continue;
		}
		fill(p, size, kind);
		note(kind, p, size, "one page of hugetlbfs of %lu kB", kb);
	}
	if (sizes)
		closedir(sizes);
}

/* Folios smaller than a huge page: whether the kernel gave what it was asked for is in pagemap and smaps. */
static void folios(void)
{
	static const size_t kb[] = { 16, 32, 64, 128, 512, 2048 };

	for (size_t i = 0; i < ARRAY_SIZE(kb); i++) {
		size_t size = kb[i] << 10;
		char path[128], kind[32], *area, *p;

		if (size <= page || size >= HUGE)
			continue;
		snprintf(kind, sizeof(kind), "mthp_%zuk", kb[i]);
		snprintf(path, sizeof(path), "/sys/kernel/mm/transparent_hugepage/hugepages-%zukB/enabled", kb[i]);
		if (access(path, R_OK)) {
			absent(kind);
			continue;
		}
		area = map(2 * size, rw, anon, -1);
		p = (char *)(((uintptr_t)area + size - 1) & ~(size - 1));
		madvise(p, size, MADV_HUGEPAGE);
		fill(p, size, kind);
		note(kind, p, size, "a folio of %zu kB, if there was one", kb[i]);
	}
}

static void protected(void)
{
	char *p = map(PAGES(4), rw, anon, -1);

	fill(p, PAGES(4), "exec-only");
	mprotect(p, PAGES(4), PROT_EXEC);
	note("exec_only", p, PAGES(4), "4 pages with content, then mprotect(PROT_EXEC)");

#ifdef __aarch64__
	{
		/* bti c; ret */
		static const uint32_t code[] = { 0xd503245f, 0xd65f03c0 };

		p = map(PAGES(2), rw, anon, -1);
		fill(p, PAGES(2), "bti");
		memcpy(p, code, sizeof(code));
		if (mprotect(p, PAGES(2), PROT_READ | PROT_EXEC | PROT_BTI))
			absent("bti");
		else
			note("bti", p, PAGES(2), "PROT_READ | PROT_EXEC | PROT_BTI");
	}
#endif
}

#ifdef __aarch64__
/* Tag 16 bytes: the address says with what. */
static void set_tag(char *p)
{
	asm volatile(".arch armv8.5-a+memtag\n\tstg %0, [%0]" : : "r"(p) : "memory");
}

static void tagged(void)
{
	char *p, *q;

	if (prctl(PR_SET_TAGGED_ADDR_CTRL, TAGGED_ADDR_ENABLE | TAGS_CHECKED_SYNC | 0xfffe << 3, 0, 0, 0) ||
	    !(p = map(PAGES(4), rw | PROT_MTE, anon, -1))) {
		absent("mte");
		return;
	}
	fill(p, PAGES(4), "mte");
	q = (char *)((uintptr_t)p | 0xaul << TAG_SHIFT);
	set_tag(q);
	snprintf(q, 16, "tag a");
	note("mte", p, PAGES(4), "PROT_MTE, 4 pages with content, the first 16 bytes with the tag 0xa");
}

#endif

static void at(const char *kind, uintptr_t hint, int bits, const char *what)
{
	char *p = mmap((void *)hint, PAGES(4), rw, anon, -1, 0);

	if (p == MAP_FAILED || (uintptr_t)p < 1ul << bits) {
		errno = ENOMEM;
		absent(kind);
		return;
	}
	fill(p, PAGES(4), kind);
	note(kind, p, PAGES(4), "4 pages, %s", what);
}

static void high(void)
{
#ifdef __aarch64__
	at("above_48", 1ul << 48 | 1ul << 30, 48, "the first above 2^48");
	at("above_51", 1ul << 51, 48, "at 2^51");
	at("top", (1ul << 52) - (1ul << 20), 48, "near the end of 52 bits");
#else
	at("above_38", 1ul << 46, 38, "above what sv39 has");
	at("above_47", 1ul << 55, 47, "above what sv48 has");
	at("top", (1ul << 56) - (1ul << 20), 47, "near the end of sv57");
#endif
}

static size_t swapped(const char *p, size_t size)
{
	int fd = open("/proc/self/pagemap", O_RDONLY);
	uint64_t entry;
	size_t count = 0;

	for (size_t off = 0; off < size; off += page)
		if (pread(fd, &entry, 8, (uintptr_t)(p + off) / page * 8) == 8 && entry & SWAPPED)
			count++;
	close(fd);
	return count;
}

/* Reclaim passes over pages that another processor still holds in its batch: ask until all are out. */
static size_t page_out(char *p, size_t size)
{
	for (int i = 0; i < 100 && swapped(p, size) < size / page; i++) {
		madvise(p, size, MADV_PAGEOUT);
		usleep(10000);
	}
	return swapped(p, size);
}

static char *inherited;

static void swap_child(void)
{
	note("swapped_shared", inherited, PAGES(16), "the same entries as in the parent");
}

static void swap(void)
{
	char *p = map(PAGES(64), rw, anon, -1);
	size_t out;

	fill(p, PAGES(64), "swapped");
	out = page_out(p, PAGES(64));
	note("swapped", p, PAGES(64), "64 pages, %zu swapped out", out);

	p = map(PAGES(16), rw, anon, -1);
	fill(p, PAGES(16), "swapped-partly");
	page_out(p, PAGES(16));
	for (size_t off = 0; off < PAGES(4); off += page)
		p[off + 100] = 1;
	note("swapped_partly", p, PAGES(16), "16 pages swapped out, the first 4 written to since");

	p = map(PAGES(4), rw, anon, -1);
	fill(p, PAGES(4), "swapped-none");
	mprotect(p, PAGES(4), PROT_NONE);
	note("prot_none_before_swap", p, PAGES(4), "4 pages with content, PROT_NONE, %zu swapped out", page_out(p, PAGES(4)));

	inherited = map(PAGES(16), rw, anon, -1);
	fill(inherited, PAGES(16), "swapped-shared");
	page_out(inherited, PAGES(16));
	note("swapped_shared", inherited, PAGES(16), "16 pages swapped out, then forked");
	spawn("kv-swapkid", swap_child);
}

/* Writable pages of a file, read and written: only the second are dirty. */
static void dirty(void)
{
	int fd = open("/dirty-file", O_RDWR | O_CREAT, 0600);
	char *p;

	if (fd < 0 || ftruncate(fd, PAGES(8)) || !(p = map(PAGES(8), rw, MAP_SHARED, fd))) {
		absent("clean_and_dirty");
		return;
	}
	for (size_t off = 0; off < PAGES(8); off += page)
		*(volatile char *)(p + off);
	fill(p, PAGES(4), "dirty");
	note("clean_and_dirty", p, PAGES(8), "8 writable pages of a file: 4 written, 4 read only");
}

static const struct role roles[] = {
	{ "kv-hugetlb", hugetlb, 1 },
	{ "kv-folios", folios, 1 },
	{ "kv-protected", protected, 1 },
#ifdef __aarch64__
	{ "kv-tagged", tagged, 1 },
#endif
	{ "kv-high", high, 1 },
	{ "kv-dirty", dirty, 1 },
	/* The last: what is swapped out must not come back for anything else. */
	{ "kv-swap", swap, 2 },
};

int main(int argc, char **argv)
{
	return argc == 2 ? play(argv[1], roles, ARRAY_SIZE(roles)) : 2;
}
