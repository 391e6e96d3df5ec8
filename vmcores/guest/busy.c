/*
 * Fills a machine as a busy server's memory is filled, and leaves when everything sleeps; the processes stay.
 *
 *     busy
 *
 * Many small files in a tmpfs, a part of them removed again, so that what comes later fills holes; then processes
 * with threads, each with many small areas whose pages are touched in random order, a few at a time. The numbers
 * are pseudo-random and the same each time; which page frames the kernel uses is not.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096
#define PROCESSES 400
#define THREADS 3		/* besides the first of each process */
#define AREAS 55
#define MOST_PAGES 64		/* of an area */
#define WRITERS 2
#define FILES 80000		/* of each writer */
#define IN_DIRECTORY 1000
#define MOST_OF_FILE 8		/* pages */
#define SHARED 1024		/* pages that all processes map */
#define AT_ONCE 16		/* pages that a process touches before another one has its turn */
#define STACK (64 << 10)

static int ready[2];

static void __attribute__((noreturn)) fail(const char *what)
{
	dprintf(1, "busy: ");
	perror(what);
	_exit(1);
}

static uint32_t next(uint32_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 17;
	*state ^= *state << 5;
	return *state;
}

static void name_of(char *path, int writer, int number)
{
	sprintf(path, "/busy-files/%d-%d/%d", writer, number / IN_DIRECTORY, number);
}

static void write_files(int writer)
{
	static char content[MOST_OF_FILE * PAGE];
	uint32_t state = 1000003 + writer;
	char path[64];

	for (int i = 0; i < FILES; i++) {
		size_t size = (next(&state) % MOST_OF_FILE + 1) * PAGE;
		int fd;

		if (i % IN_DIRECTORY == 0) {
			sprintf(path, "/busy-files/%d-%d", writer, i / IN_DIRECTORY);
			if (mkdir(path, 0755))
				fail(path);
		}
		name_of(path, writer, i);
		fd = open(path, O_WRONLY | O_CREAT, 0644);
		for (size_t at = 0; at < size; at += PAGE)
			sprintf(content + at, "file %d of %d, at %zu", i, writer, at);
		if (fd < 0 || write(fd, content, size) != (ssize_t)size)
			fail(path);
		close(fd);
	}
	for (int i = 0; i < FILES; i++) {
		name_of(path, writer, i);
		if (next(&state) % 5 < 2 && unlink(path))
			fail(path);
	}
}

static void *sleeper(void *unused)
{
	for (;;)
		pause();
	return unused;
}

static void touch_areas(uint32_t state)
{
	static char *pages[AREAS * MOST_PAGES];
	size_t count = 0;

	for (int i = 0; i < AREAS; i++) {
		size_t size = next(&state) % MOST_PAGES + 1;
		/* A page between two areas keeps them apart. */
		char *p = mmap(NULL, (size + 1) * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (p == MAP_FAILED || munmap(p + size * PAGE, PAGE))
			fail("an area");
		for (size_t k = 0; k < size; k++)
			if (next(&state) % 4)
				pages[count++] = p + k * PAGE;
	}
	for (size_t left = count; left; left--) {
		size_t chosen = next(&state) % left;

		sprintf(pages[chosen], "page %p", pages[chosen]);
		pages[chosen] = pages[left - 1];
		if (left % AT_ONCE == 0)
			sched_yield();
	}
}

static void process(int number, int shared)
{
	pthread_attr_t small;
	pthread_t thread;
	char name[16], *p;

	sprintf(name, "busy-%d", number);
	prctl(PR_SET_NAME, name, 0, 0, 0);
	p = mmap(NULL, SHARED * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, shared, 0);
	if (p == MAP_FAILED)
		fail("the shared pages");
	for (int k = 0; k < SHARED; k += 8)
		p[k * PAGE] = 1;
	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, STACK);
	for (int k = 0; k < THREADS; k++)
		if (pthread_create(&thread, &small, sleeper, NULL))
			fail("a thread");
	touch_areas(2000003 + number);
	if (write(ready[1], "r", 1) != 1)
		fail("the pipe");
	for (;;)
		pause();
}

int main(void)
{
	int shared = memfd_create("busy", 0), status;
	char byte;

	if (shared < 0 || ftruncate(shared, SHARED * PAGE) || pipe(ready))
		fail("files");
	if (mkdir("/busy-files", 0755) || mount("tmpfs", "/busy-files", "tmpfs", 0, "size=80%,nr_inodes=0"))
		fail("the tmpfs");
	for (int i = 0; i < WRITERS; i++)
		if (!fork()) {
			write_files(i);
			_exit(0);
		}
	for (int i = 0; i < WRITERS; i++)
		if (wait(&status) < 0 || status)
			return 1;
	for (int i = 0; i < PROCESSES; i++)
		if (!fork())
			process(i, shared);
	for (int i = 0; i < PROCESSES; i++)
		if (read(ready[0], &byte, 1) != 1)
			return 1;
	return 0;
}
