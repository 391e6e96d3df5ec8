/*
 * Has pages of the machine broken, and waits until the kernel has dealt with each.
 *
 *     rare WORKLOAD
 *
 * WORKLOAD takes lines as guest/workload.c writes them. For each page a line "KVINTRO-BREAK-N ADDRESS" asks
 * the host for a machine check (lab/boot.py). main() leaves when the pages are poisoned; the process with
 * one of them stays.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#define PAGE 4096
#define COUNT 16
/* include/uapi/linux/kernel-page-flags.h */
#define BUDDY (1ull << 10)
#define HWPOISON (1ull << 19)
#define SECONDS 60

static int kpageflags = -1;

static void __attribute__((noreturn)) fail(const char *what)
{
	dprintf(1, "rare: ");
	perror(what);
	_exit(1);
}

static uint64_t word(int fd, uint64_t index)
{
	uint64_t value;

	return pread(fd, &value, sizeof(value), index * sizeof(value)) == sizeof(value) ? value : 0;
}

static void break_page(int number, uint64_t pfn)
{
	dprintf(1, "\nKVINTRO-BREAK-%d %#lx\n", number, (unsigned long)(pfn * PAGE));
	for (int i = 0; i < 10 * SECONDS; i++) {
		if (word(kpageflags, pfn) & HWPOISON) {
			/* It leaves the direct map right after that. */
			usleep(500000);
			return;
		}
		usleep(100000);
	}
	fail("the page was not poisoned");
}

int main(int argc, char **argv)
{
	int workload = argc == 2 ? open(argv[1], O_WRONLY | O_APPEND) : -1;
	int pagemap = open("/proc/self/pagemap", O_RDONLY), ready[2];
	uint64_t pfn;
	char *p, byte;

	kpageflags = open("/proc/kpageflags", O_RDONLY);
	if (workload < 0 || pagemap < 0 || kpageflags < 0 || pipe(ready))
		fail("files");
	if (fork()) {
		close(ready[1]);
		return read(ready[0], &byte, 1) != 1;
	}
	prctl(PR_SET_NAME, "kv-broken", 0, 0, 0);
	close(pagemap);
	pagemap = open("/proc/self/pagemap", O_RDONLY);
	p = mmap(NULL, COUNT * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED)
		fail("mmap");
	for (int i = 0; i < COUNT; i++)
		snprintf(p + i * PAGE, 64, "kvintro broken %016lx", (unsigned long)(p + i * PAGE));
	pfn = word(pagemap, (uintptr_t)(p + 3 * PAGE) / PAGE) & ((1ull << 55) - 1);
	break_page(0, pfn);
	dprintf(workload, "%d kv-broken machine_check %016lx %016lx the page at physical %#lx had a memory error\n",
		getpid(), (unsigned long)(p + 3 * PAGE), (unsigned long)(p + 4 * PAGE), (unsigned long)pfn * PAGE);
	/* The first page of a free block of some size: it has to be taken out of the middle of free memory. */
	for (pfn = 0x1000; !(word(kpageflags, pfn) & word(kpageflags, pfn + 5) & BUDDY); pfn += 8)
		if (pfn > 1 << 20)
			fail("no free page");
	pfn += 5;
	break_page(1, pfn);
	dprintf(workload, "%d kv-broken machine_check_free %016lx %016lx the page at physical %#lx was free\n",
		getpid(), 0ul, 0ul, (unsigned long)pfn * PAGE);
	if (write(ready[1], "r", 1) != 1)
		fail("write");
	for (;;)
		pause();
}
