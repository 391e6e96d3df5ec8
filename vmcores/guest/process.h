/*
 * What the programs share that put memory of known kinds into processes which stay.
 *
 * Each thing is one line in the file that main() opens as truth:
 *
 *     PID ROLE KIND START END NOTE
 *
 * START and END (exclusive) are hexadecimal.  A KIND that this kernel does not offer is written with
 * the address 0 and the reason.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

static int truth = -1;		/* every process appends whole lines to it */
static int ready[2];		/* a byte from each process that has reached its steady state */
static const char *role = "?";
static size_t page;		/* the size of one, main() sets it */

#define PAGES(n) ((n) * page)
/* What one entry of the next higher table maps. */
#define HUGE (page * (page / 8))

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
	for (size_t off = 0; off + 64 <= size; off += page)
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

struct role {
	const char *name;
	void (*body)(void);
	int processes;		/* that it leaves, with those it forks */
};

/* Start them all and wait until every process sleeps; 0 when that went well. */
static int play(const char *path, const struct role *roles, size_t count)
{
	int expected = 0;
	char byte;

	page = getpagesize();
	truth = open(path, O_WRONLY | O_CREAT | O_APPEND, 0644);
	if (truth < 0 || pipe(ready))
		return 1;
	for (size_t i = 0; i < count; i++) {
		spawn(roles[i].name, roles[i].body);
		expected += roles[i].processes;
	}
	while (expected > 0 && read(ready[0], &byte, 1) == 1)
		expected--;
	return expected != 0;
}
