/*
 * What a machine in use has and a bare guest lacks: swapped pages, memory of several NUMA nodes, merged
 * and poisoned pages, BPF programs with their trampolines, traced functions.
 *
 *     furnish WORKLOAD CODE
 *
 * WORKLOAD takes lines as guest/workload.c writes them.  CODE takes what the kernel answers of code that
 * it made at run time, "KIND START END NAME", END exclusive.  Swap must be on, tracefs be mounted at
 * /sys/kernel/tracing.  main() leaves when all is there; the processes that hold it stay.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/btf.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif
#define MPOL_DEFAULT 0
#define MPOL_BIND 2
#define MPOL_INTERLEAVE 3
/* Newer than the headers of the machine that compiles this. */
#define MAP_TYPE_ARENA 33
#define KB(n) ((size_t)(n) << 10)
#define PAGE 4096
#define SWAPPED (1ull << 62)

static int workload, code;
static int ready[2];
static const char *role = "?";

static void __attribute__((noreturn)) fail(const char *what)
{
	dprintf(1, "%s: %s: %s\n", role, what, strerror(errno));
	if (write(ready[1], "f", 1) != 1)
		dprintf(1, "nobody listens\n");
	_exit(1);
}

static void note(const char *kind, const void *start, size_t size, const char *format, ...)
{
	va_list args;
	char text[256];

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	if (dprintf(workload, "%d %s %s %016lx %016lx %s\n", getpid(), role, kind, (unsigned long)start,
		    start ? (unsigned long)start + size : 0ul, text) < 0)
		fail("note");
}

static void fill(char *p, size_t size, const char *what)
{
	for (size_t off = 0; off < size; off += PAGE)
		snprintf(p + off, 64, "kvintro %s %016lx", what, (unsigned long)(p + off));
}

static char *map(size_t size, int flags, int fd)
{
	char *p = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, fd, 0);

	if (p == MAP_FAILED)
		fail("mmap");
	return p;
}

static char *anonymous(size_t size)
{
	return map(size, MAP_PRIVATE | MAP_ANONYMOUS, -1);
}

static int put(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);
	ssize_t n = fd < 0 ? -1 : write(fd, text, strlen(text));

	if (fd >= 0)
		close(fd);
	return n == (ssize_t)strlen(text) ? 0 : -1;
}

static long get(const char *path)
{
	char text[64] = "";
	int fd = open(path, O_RDONLY);

	if (fd < 0 || read(fd, text, sizeof(text) - 1) <= 0)
		return -1;
	close(fd);
	return atol(text);
}

static void spawn(const char *name, void (*body)(void))
{
	pid_t pid = fork();

	if (pid < 0)
		fail("fork");
	if (pid == 0) {
		role = name;
		prctl(PR_SET_NAME, name, 0, 0, 0);
		body();
		if (write(ready[1], "r", 1) != 1)
			fail("ready");
		for (;;)
			pause();
	}
}

/* Until so many processes have all they should have. */
static void await(int processes)
{
	char byte;

	for (; processes > 0; processes--)
		if (read(ready[0], &byte, 1) != 1 || byte != 'r')
			exit(1);
}

/* --- swap */

static size_t swapped(const char *p, size_t size)
{
	int fd = open("/proc/self/pagemap", O_RDONLY);
	uint64_t entry;
	size_t count = 0;

	for (size_t off = 0; off < size; off += PAGE)
		if (pread(fd, &entry, 8, (uintptr_t)(p + off) / PAGE * 8) == 8 && entry & SWAPPED)
			count++;
	close(fd);
	return count;
}

/* Reclaim passes over pages that another processor still holds in its batch: ask until all are out. */
static void page_out(char *p, size_t size)
{
	for (int i = 0; i < 200 && swapped(p, size) < size / PAGE; i++) {
		madvise(p, size, MADV_PAGEOUT);
		usleep(10000);
	}
	if (swapped(p, size) < size / PAGE)
		fail("MADV_PAGEOUT");
}

static char *inherited;

static void swap_child(void)
{
	note("swapped_shared", inherited, KB(64), "the same entries as in the parent");
}

static void swap(void)
{
	char *p = anonymous(KB(256));
	int fd;

	fill(p, KB(256), "swapped");
	page_out(p, KB(256));
	note("swapped", p, KB(256), "64 pages, all swapped out");

	p = anonymous(KB(64));
	fill(p, KB(64), "swapped-partly");
	page_out(p, KB(64));
	for (size_t off = 0; off < KB(16); off += PAGE)
		p[off + 100] = 1;
	note("swapped_partly", p, KB(64), "16 pages swapped out, the first 4 written to since");

	fd = memfd_create("kvintro-swap", 0);
	if (fd < 0 || ftruncate(fd, KB(64)))
		fail("memfd");
	p = map(KB(64), MAP_SHARED, fd);
	fill(p, KB(64), "swapped-memfd");
	for (int i = 0; i < 5; i++) {
		madvise(p, KB(64), MADV_PAGEOUT);
		usleep(10000);
	}
	note("swapped_memfd", p, KB(64), "16 pages of shared memory, swapped out: entries in the file's tree");

	inherited = anonymous(KB(64));
	fill(inherited, KB(64), "swapped-shared");
	page_out(inherited, KB(64));
	note("swapped_shared", inherited, KB(64), "16 pages swapped out, then forked");
	spawn("kv-swapkid", swap_child);
}

/* --- NUMA */

static void numa(void)
{
	static const struct { const char *kind; int mode; unsigned long nodes; } policies[] = {
		{ "node0", MPOL_BIND, 1 },
		{ "node1", MPOL_BIND, 2 },
		{ "interleaved", MPOL_INTERLEAVE, 3 },
	};

	for (size_t i = 0; i < sizeof(policies) / sizeof(policies[0]); i++) {
		char *p = anonymous(KB(64));

		if (syscall(SYS_mbind, p, KB(64), policies[i].mode, &policies[i].nodes, 64ul, 0))
			fail("mbind");
		fill(p, KB(64), policies[i].kind);
		note(policies[i].kind, p, KB(64), "16 pages of nodes %#lx", policies[i].nodes);
	}
}

/* --- pages that are merged, or broken */

static void merged(void)
{
	char *p = anonymous(KB(64));

	memset(p, 0x6b, KB(64));
	madvise(p, KB(64), MADV_NOHUGEPAGE);
	if (madvise(p, KB(64), MADV_MERGEABLE) || put("/sys/kernel/mm/ksm/run", "1")) {
		note("merged", NULL, 0, "absent: %s", strerror(errno));
		return;
	}
	for (int i = 0; i < 500 && get("/sys/kernel/mm/ksm/pages_sharing") < 15; i++)
		usleep(20000);
	put("/sys/kernel/mm/ksm/run", "0");
	note("merged", p, KB(64), "16 pages alike, %ld of them merged with another",
	     get("/sys/kernel/mm/ksm/pages_sharing"));
}

static void survive(int signal)
{
}

static void poisoned(void)
{
	char *p = anonymous(KB(16));

	/* Whoever asks for a memory error is told of it as if it had met one. */
	signal(SIGBUS, survive);
	fill(p, KB(16), "poisoned");
	if (madvise(p + PAGE, PAGE, MADV_HWPOISON))
		note("poisoned", NULL, 0, "absent: %s", strerror(errno));
	else
		note("poisoned", p, KB(16), "4 pages, the second with a memory error");
}

/* --- BPF */

static const char license[] = "GPL";

#define INSN(c, d, s, o, i) ((struct bpf_insn){ .code = (c), .dst_reg = (d), .src_reg = (s), .off = (o), .imm = (i) })
#define SET_R0(i) INSN(BPF_ALU64 | BPF_MOV | BPF_K, 0, 0, 0, i)
#define RETURN INSN(BPF_JMP | BPF_EXIT, 0, 0, 0, 0)

static int bpf(int command, union bpf_attr *attr)
{
	return syscall(SYS_bpf, command, attr, sizeof(*attr));
}

/* What the kernel says of a program's code, a line for each of its functions. */
static void code_of(int fd, const char *name)
{
	struct bpf_prog_info info = { 0 };
	union bpf_attr attr = { .info = { .bpf_fd = fd, .info_len = sizeof(info), .info = (uintptr_t)&info } };
	uint64_t addresses[8] = { 0 };
	uint32_t lengths[8] = { 0 };

	info.nr_jited_ksyms = info.nr_jited_func_lens = 8;
	info.jited_ksyms = (uintptr_t)addresses;
	info.jited_func_lens = (uintptr_t)lengths;
	if (bpf(BPF_OBJ_GET_INFO_BY_FD, &attr))
		fail("BPF_OBJ_GET_INFO_BY_FD");
	for (uint32_t i = 0; i < info.nr_jited_func_lens && i < 8; i++)
		dprintf(code, "bpf %016lx %016lx %s\n", (unsigned long)addresses[i],
			(unsigned long)addresses[i] + lengths[i], name);
}

static int program(int type, const char *name, const struct bpf_insn *insns, size_t count, uint32_t btf_id)
{
	union bpf_attr attr = { 0 };
	int fd;

	attr.prog_type = type;
	attr.insns = (uintptr_t)insns;
	attr.insn_cnt = count;
	attr.license = (uintptr_t)license;
	strncpy(attr.prog_name, name, sizeof(attr.prog_name) - 1);
	if (btf_id) {
		attr.expected_attach_type = BPF_TRACE_FENTRY;
		attr.attach_btf_id = btf_id;
	}
	fd = bpf(BPF_PROG_LOAD, &attr);
	if (fd < 0)
		fail(name);
	code_of(fd, name);
	return fd;
}

/* The number of a function in the kernel's own types. */
static uint32_t function_id(const char *name)
{
	static char data[16 << 20];
	const struct btf_header *header = (void *)data;
	const char *strings, *p, *end;
	size_t size = 0;
	ssize_t n;
	int fd = open("/sys/kernel/btf/vmlinux", O_RDONLY);

	while (fd >= 0 && (n = read(fd, data + size, sizeof(data) - size)) > 0)
		size += n;
	close(fd);
	if (size < sizeof(*header))
		return 0;
	p = data + header->hdr_len + header->type_off;
	end = p + header->type_len;
	strings = data + header->hdr_len + header->str_off;
	for (uint32_t id = 1; p < end; id++) {
		const struct btf_type *type = (void *)p;
		uint32_t kind = BTF_INFO_KIND(type->info), vlen = BTF_INFO_VLEN(type->info);

		if (kind == BTF_KIND_FUNC && !strcmp(strings + type->name_off, name))
			return id;
		p += sizeof(*type);
		switch (kind) {
		case BTF_KIND_INT:
		case BTF_KIND_VAR:
		case BTF_KIND_DECL_TAG:
			p += 4;
			break;
		case BTF_KIND_ARRAY:
			p += 12;
			break;
		case BTF_KIND_STRUCT:
		case BTF_KIND_UNION:
		case BTF_KIND_DATASEC:
		case 19: /* BTF_KIND_ENUM64 */
			p += vlen * 12;
			break;
		case BTF_KIND_ENUM:
		case BTF_KIND_FUNC_PROTO:
			p += vlen * 8;
			break;
		}
	}
	return 0;
}

static int bpf_map(int type, const char *name, uint32_t key, uint32_t value, uint32_t entries, uint32_t flags)
{
	union bpf_attr attr = { 0 };

	attr.map_type = type;
	attr.key_size = key;
	attr.value_size = value;
	attr.max_entries = entries;
	attr.map_flags = flags;
	strncpy(attr.map_name, name, sizeof(attr.map_name) - 1);
	return bpf(BPF_MAP_CREATE, &attr);
}

static void bpf_programs(void)
{
	static struct bpf_insn large[4000];
	const size_t count = sizeof(large) / sizeof(large[0]);
	const struct bpf_insn tiny[] = { SET_R0(0), RETURN };
	const struct bpf_insn calling[] = {
		INSN(BPF_JMP | BPF_CALL, 0, BPF_PSEUDO_CALL, 0, 1), RETURN,
		SET_R0(1), RETURN,
	};
	const unsigned long both = 3;
	union bpf_attr attr = { 0 };
	int fds[2], fd;
	uint32_t id;
	char *p;

	fd = program(BPF_PROG_TYPE_SOCKET_FILTER, "kv_tiny", tiny, 2, 0);
	if (socketpair(AF_UNIX, SOCK_DGRAM, 0, fds) ||
	    setsockopt(fds[0], SOL_SOCKET, SO_ATTACH_BPF, &fd, sizeof(fd)))
		fail("SO_ATTACH_BPF");
	program(BPF_PROG_TYPE_SOCKET_FILTER, "kv_calling", calling, 4, 0);
	for (size_t i = 0; i < count - 1; i++)
		large[i] = SET_R0(i);
	large[count - 1] = RETURN;
	program(BPF_PROG_TYPE_SOCKET_FILTER, "kv_large", large, count, 0);

	id = function_id("bpf_fentry_test1");
	if (!id)
		fail("bpf_fentry_test1");
	attr.raw_tracepoint.prog_fd = program(BPF_PROG_TYPE_TRACING, "kv_fentry", tiny, 2, id);
	if (bpf(BPF_RAW_TRACEPOINT_OPEN, &attr) < 0)
		fail("BPF_RAW_TRACEPOINT_OPEN");

	/* Kernel memory of both nodes in one area; pages that are mapped twice; an area mapped here and there. */
	if (syscall(SYS_set_mempolicy, MPOL_INTERLEAVE, &both, 64ul))
		fail("set_mempolicy");
	if (bpf_map(BPF_MAP_TYPE_ARRAY, "kv_array", 4, 8, 65536, 0) < 0)
		fail("array");
	syscall(SYS_set_mempolicy, MPOL_DEFAULT, NULL, 0ul);
	if (bpf_map(BPF_MAP_TYPE_RINGBUF, "kv_ring", 0, 0, 16384, 0) < 0)
		fail("ring");
	fd = bpf_map(MAP_TYPE_ARENA, "kv_arena", 0, 0, 16, BPF_F_MMAPABLE);
	if (fd < 0) {
		note("arena", NULL, 0, "absent: %s", strerror(errno));
		return;
	}
	p = map(KB(64), MAP_SHARED, fd);
	p[0] = p[5 * PAGE] = 1;
	note("arena", p, KB(64), "16 pages shared with BPF programs, two of them touched");
}

/* --- tracing */

static void traced(void)
{
	static const char *const places[] = { "p:kv bpf_fentry_test3+9", "p:kv bpf_fentry_test3+5" };
	const char *instance = "/sys/kernel/tracing/instances/kv";
	char path[128];

	snprintf(path, sizeof(path), "%s/set_ftrace_filter", instance);
	if (mkdir(instance, 0755) || put(path, "bpf_fentry_test2"))
		fail(path);
	snprintf(path, sizeof(path), "%s/current_tracer", instance);
	if (put(path, "function"))
		fail(path);
	/* Behind a function's entry, so that its instruction is moved to a slot of its own. */
	for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++)
		if (!put("/sys/kernel/tracing/kprobe_events", places[i])) {
			if (put("/sys/kernel/tracing/events/kprobes/kv/enable", "1"))
				fail("kprobe");
			return;
		}
	fail("kprobe_events");
}

static void bereaved(int signal)
{
	static const char text[] = "a process that was to stay ended\n";

	_exit(write(1, text, sizeof(text) - 1) > 0);
}

int main(int argc, char **argv)
{
	cpu_set_t first;

	CPU_ZERO(&first);
	CPU_SET(0, &first);
	if (argc != 3)
		return 2;
	workload = open(argv[1], O_WRONLY | O_CREAT | O_APPEND, 0644);
	code = open(argv[2], O_WRONLY | O_CREAT | O_APPEND, 0644);
	if (workload < 0 || code < 0 || pipe(ready) || sched_setaffinity(0, sizeof(first), &first))
		return 1;
	signal(SIGCHLD, bereaved);
	spawn("kv-numa", numa);
	spawn("kv-merged", merged);
	spawn("kv-poisoned", poisoned);
	spawn("kv-bpf", bpf_programs);
	await(4);
	traced();
	/* The last: what is swapped out must not come back for anything else. */
	spawn("kv-swap", swap);
	await(2);
	return 0;
}
