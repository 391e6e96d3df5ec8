/*
 * Writes down what the kernel says about itself, and leaves the guest exactly so.
 *
 * Everything goes out of the emulator by plain instructions, which need no driver, no terminal and no
 * memory: by the port of isa-debugcon on x86, by a file of semihosting on arm64 and
 * riscv64.  What changes from moment to moment is read last, by this one process, which then prints
 * the marker on the console and sleeps: nothing is forked, freed or written between the truth and
 * the dump.
 *
 * On it: chunks, each a line "KV1 NAME LENGTH\n" and LENGTH bytes; a file is the chunks of one
 * name joined; "KV1 . 0\n" ends the stream.
 *
 *     probe send FILE...     the files, by their base names
 *     probe end              the end of the stream
 *     probe truth MARKER     everything that /proc and debugfs know, the end, MARKER; never returns
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <elf.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
#ifdef __x86_64__
#include <asm/ldt.h>
#include <sys/io.h>
#endif

#define MAX_PIDS 64
#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

static char buffer[1 << 16];

#ifdef __x86_64__

#define PORT 0xe9

static int open_port(void)
{
	return ioperm(PORT, 1, 1);
}

static void out(const void *data, size_t size)
{
	asm volatile("rep outsb" : "+S"(data), "+c"(size) : "d"(PORT) : "memory");
}

/* current_kernel and current_user show the page tables of whoever reads: let them have an LDT. */
static void prepare(void)
{
	struct user_desc desc = { .limit = 0xfff, .seg_32bit = 1, .useable = 1 };

	for (desc.entry_number = 0; desc.entry_number < 2; desc.entry_number++)
		syscall(SYS_modify_ldt, 0x11, &desc, sizeof(desc));
}

#else

/* Arm's "Semihosting for AArch32 and AArch64", 2.3: the operation in w0, its arguments' address in x1. */
#define SEMIHOSTING_OPEN 1
#define SEMIHOSTING_WRITE 5
#define SEMIHOSTING_SEEK 10
#define SEMIHOSTING_LENGTH 12
#define APPEND 9		/* as fopen()'s "ab" */

static long port = -1;

#ifdef __aarch64__
static long semihosting(long operation, const volatile void *arguments)
{
	register long x0 asm("x0") = operation;
	register const volatile void *x1 asm("x1") = arguments;

	asm volatile("hlt #0xf000" : "+r"(x0) : "r"(x1) : "memory");
	return x0;
}
#elif defined(__riscv)
/* "RISC-V Semihosting": the same operations; these three instructions, which must be within a page. */
static long semihosting(long operation, const volatile void *arguments)
{
	register long a0 asm("a0") = operation;
	register const volatile void *a1 asm("a1") = arguments;

	asm volatile(".option push\n\t.option norvc\n\t.balign 16\n\t"
		     "slli x0, x0, 0x1f\n\tebreak\n\tsrai x0, x0, 7\n\t.option pop"
		     : "+r"(a0) : "r"(a1) : "memory");
	return a0;
}
#endif

/*
 * A file of the host, to append to: QEMU 7.2 opens it so that nothing is lost, but at its start. It looks
 * addresses up without faulting pages in.
 */
static int open_port(void)
{
	const volatile char name[] = "stream";
	const volatile uintptr_t arguments[] = { (uintptr_t)name, APPEND, sizeof(name) - 1 };
	volatile uintptr_t place[2];

	port = semihosting(SEMIHOSTING_OPEN, arguments);
	place[0] = port;
	place[1] = semihosting(SEMIHOSTING_LENGTH, place);
	return port < 0 || semihosting(SEMIHOSTING_SEEK, place) ? -1 : 0;
}

static void out(const void *data, size_t size)
{
	const volatile char *bytes = data;

	for (size_t i = 0; i < size; i += 4096)
		(void)bytes[i];
	if (size)
		(void)bytes[size - 1];
	while (size) {
		const volatile uintptr_t arguments[] = { port, (uintptr_t)bytes, size };
		size_t left = semihosting(SEMIHOSTING_WRITE, arguments);

		bytes += size - left;
		size = left;
	}
}

static void prepare(void)
{
}

#endif

static void chunk(const char *name, const void *data, size_t size)
{
	char header[256];

	out(header, snprintf(header, sizeof(header), "KV1 %s %zu\n", name, size));
	out(data, size);
}

static void line(const char *name, const char *format, ...)
{
	char text[1024];
	va_list args;
	int n;

	va_start(args, format);
	n = vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	chunk(name, text, n < (int)sizeof(text) ? n : (int)sizeof(text) - 1);
}

static int send_file(const char *name, const char *path)
{
	int fd = open(path, O_RDONLY);
	ssize_t n;

	if (fd < 0)
		return -1;
	chunk(name, "", 0);
	while ((n = read(fd, buffer, sizeof(buffer))) > 0)
		chunk(name, buffer, n);
	close(fd);
	return n;
}

/* --- variables, read through /proc/kcore at the addresses of /proc/kallsyms */

static struct variable {
	const char *name;
	unsigned int size;
	unsigned long address;
} variables[] = {
	{ "page_offset_base", 8, 0 },
	{ "vmalloc_base", 8, 0 },
	{ "vmemmap_base", 8, 0 },
	{ "phys_base", 8, 0 },
	{ "physical_mask", 8, 0 },
	{ "sme_me_mask", 8, 0 },
	{ "high_memory", 8, 0 },
	{ "max_pfn", 8, 0 },
	{ "max_low_pfn", 8, 0 },
	{ "max_possible_pfn", 8, 0 },
	{ "max_mapnr", 8, 0 },
	{ "physmem_end", 8, 0 },
	{ "direct_map_physmem_end", 8, 0 },
	{ "__pgtable_l5_enabled", 4, 0 },
	{ "pgdir_shift", 4, 0 },
	{ "ptrs_per_p4d", 4, 0 },
	{ "vsyscall_mode", 4, 0 },
	{ "module_load_offset", 8, 0 },
	{ "execmem_info", 64, 0 },
	{ "nr_pfn_mapped", 4, 0 },
	{ "pfn_mapped", 128, 0 },
	{ "direct_pages_count", 40, 0 },
	{ "direct_gbpages", 4, 0 },
	{ "page_size_mask", 4, 0 },
	{ "efi_va", 8, 0 },
	{ "efi", 256, 0 },
	{ "mem_section", 8, 0 },
	{ "nr_cpu_ids", 4, 0 },
	{ "__per_cpu_offset", 64, 0 },
	{ "pcpu_base_addr", 8, 0 },
	{ "nr_vmap_nodes", 4, 0 },
	{ "vmap_zone_size", 4, 0 },
	{ "vmap_nodes", 8, 0 },
	{ "_totalram_pages", 8, 0 },
	{ "_brk_end", 8, 0 },
	{ "_brk_start", 8, 0 },
	{ "__supported_pte_mask", 8, 0 },
	{ "__default_kernel_pte_mask", 8, 0 },
	{ "initrd_start", 8, 0 },
	{ "initrd_end", 8, 0 },
	{ "x86_pgd_reserved", 8, 0 },
	{ "init_uts_ns", 8, 0 },
	{ "page_random", 4, 0 },
	{ "slot_random", 4, 0 },
	{ "mod_tree", 24, 0 },
	{ "kaslr_seed", 8, 0 },
	{ "nr_vmalloc_pages", 8, 0 },
	{ "vm_area_cachep", 8, 0 },
	{ "hugetlb_max_hstate", 4, 0 },
	{ "secretmem_users", 4, 0 },
	{ "__kfence_pool", 8, 0 },
	/* arm64 */
	{ "memstart_addr", 8, 0 },
	{ "kimage_voffset", 8, 0 },
	{ "kimage_vaddr", 8, 0 },
	{ "vabits_actual", 8, 0 },
	{ "arm64_use_ng_mappings", 1, 0 },
	{ "module_alloc_base", 8, 0 },
	{ "module_direct_base", 8, 0 },
	{ "module_plt_base", 8, 0 },
	{ "memstart_offset_seed", 2, 0 },
	/* riscv64 */
	{ "kernel_map", 64, 0 },
	{ "phys_ram_base", 8, 0 },
	{ "vmemmap_start_pfn", 8, 0 },
	{ "satp_mode", 8, 0 },
	{ "pgtable_l4_enabled", 1, 0 },
	{ "pgtable_l5_enabled", 1, 0 },
};

static void find_variables(void)
{
	FILE *f = fopen("/proc/kallsyms", "r");
	char name[512], type;
	unsigned long address;

	if (!f)
		return;
	while (fgets(buffer, sizeof(buffer), f)) {
		/* A name in brackets follows for a module's symbol: not ours. */
		if (strchr(buffer, '[') || sscanf(buffer, "%lx %c %511s", &address, &type, name) != 3)
			continue;
		for (size_t i = 0; i < ARRAY_SIZE(variables); i++)
			if (!variables[i].address && !strcmp(variables[i].name, name))
				variables[i].address = address;
	}
	fclose(f);
}

static void send_kcore(void)
{
	static Elf64_Phdr phdrs[512];
	int fd = open("/proc/kcore", O_RDONLY);
	Elf64_Ehdr ehdr;
	size_t count;

	if (fd < 0 || pread(fd, &ehdr, sizeof(ehdr), 0) != sizeof(ehdr)) {
		line("kcore-phdrs", "# no /proc/kcore\n");
		return;
	}
	count = ehdr.e_phnum < ARRAY_SIZE(phdrs) ? ehdr.e_phnum : ARRAY_SIZE(phdrs);
	if (pread(fd, phdrs, count * sizeof(phdrs[0]), ehdr.e_phoff) < 0)
		count = 0;
	line("kcore-phdrs", "# type offset vaddr paddr filesz memsz flags\n");
	for (size_t i = 0; i < count; i++)
		line("kcore-phdrs", "%s %#lx %#018lx %#lx %#lx %#lx %#x\n",
		     phdrs[i].p_type == PT_LOAD ? "LOAD" : phdrs[i].p_type == PT_NOTE ? "NOTE" : "?",
		     phdrs[i].p_offset, phdrs[i].p_vaddr, phdrs[i].p_paddr, phdrs[i].p_filesz,
		     phdrs[i].p_memsz, phdrs[i].p_flags);

	find_variables();
	line("values", "# name address size value (little-endian bytes when it is more than a word)\n");
	for (size_t v = 0; v < ARRAY_SIZE(variables); v++) {
		struct variable *var = &variables[v];
		unsigned char bytes[256];
		uint64_t word = 0;
		size_t i;

		for (i = 0; i < count; i++)
			if (phdrs[i].p_type == PT_LOAD && var->address >= phdrs[i].p_vaddr &&
			    var->address - phdrs[i].p_vaddr < phdrs[i].p_memsz)
				break;
		if (!var->address || i == count)
			continue;
		if (pread(fd, bytes, var->size, phdrs[i].p_offset + var->address - phdrs[i].p_vaddr) !=
		    (ssize_t)var->size)
			continue;
		if (var->size <= 8) {
			memcpy(&word, bytes, var->size);
			line("values", "%s %016lx %u %#lx\n", var->name, var->address, var->size, word);
		} else {
			char hex[2 * sizeof(bytes) + 1];

			for (i = 0; i < var->size; i++)
				sprintf(hex + 2 * i, "%02x", bytes[i]);
			line("values", "%s %016lx %u bytes:%s\n", var->name, var->address, var->size, hex);
		}
	}
	close(fd);
}

/* --- processes */

static int pids[MAX_PIDS];
static size_t nr_pids;

static void send_processes(void)
{
	DIR *proc = opendir("/proc");
	struct dirent *entry;

	line("proc-list", "# pid ppid comm\n");
	while (proc && (entry = readdir(proc))) {
		char path[300], text[512], *open_paren, *close_paren;
		int pid = atoi(entry->d_name), ppid = 0, fd, n;

		if (pid <= 0)
			continue;
		snprintf(path, sizeof(path), "/proc/%d/stat", pid);
		fd = open(path, O_RDONLY);
		n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
		close(fd);
		if (n <= 0)
			continue;
		text[n] = 0;
		open_paren = strchr(text, '(');
		close_paren = strrchr(text, ')');
		if (!open_paren || !close_paren)
			continue;
		*close_paren = 0;
		sscanf(close_paren + 1, " %*c %d", &ppid);
		line("proc-list", "%d %d %s\n", pid, ppid, open_paren + 1);
		if (!strncmp(open_paren + 1, "kv-", 3) && nr_pids < MAX_PIDS)
			pids[nr_pids++] = pid;
	}
	if (proc)
		closedir(proc);
}

static void send_pagemap(int pid)
{
	static uint64_t entries[512];
	unsigned long start, end;
	const size_t page = getpagesize();
	char path[64], text[512];
	FILE *maps;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/maps", pid);
	maps = fopen(path, "r");
	snprintf(path, sizeof(path), "/proc/%d/pagemap", pid);
	fd = open(path, O_RDONLY);
	while (maps && fd >= 0 && fgets(text, sizeof(text), maps)) {
		if (sscanf(text, "%lx-%lx", &start, &end) != 2 || (long)start < 0)
			continue;
		while (start < end) {
			size_t want = (end - start) / page;
			ssize_t got;

			want = want < ARRAY_SIZE(entries) ? want : ARRAY_SIZE(entries);
			got = pread(fd, entries, want * 8, start / page * 8);
			if (got <= 0)
				break;
			for (ssize_t i = 0; i < got / 8; i++)
				if (entries[i] >> 61)	/* present, swapped, or a page of a file */
					line("pagemap", "%d %016lx %016lx\n", pid, start + i * page,
					     entries[i]);
			start += got / 8 * page;
		}
	}
	if (maps)
		fclose(maps);
	if (fd >= 0)
		close(fd);
}

/* By guest/tables.c, where the guest has it. */
static void send_user_tables(int pid)
{
	int fd = open("/proc/kvintro/user", O_WRONLY);
	char name[64];

	if (fd < 0)
		return;
	snprintf(name, sizeof(name), "proc/%d/ptdump", pid);
	if (dprintf(fd, "%d", pid) > 0)
		send_file(name, "/proc/kvintro/user");
	close(fd);
}

static void truth(const char *marker)
{
	/* In order of how soon a line of it goes stale: the page counts come last. */
	static const char *const files[][2] = {
		{ "version", "/proc/version" },
		{ "cmdline", "/proc/cmdline" },
		{ "cpuinfo", "/proc/cpuinfo" },
		{ "iomem", "/proc/iomem" },
		{ "vmcoreinfo", "/sys/kernel/vmcoreinfo" },
		{ "memblock/memory", "/sys/kernel/debug/memblock/memory" },
		{ "memblock/reserved", "/sys/kernel/debug/memblock/reserved" },
		{ "layout", "/proc/kvintro/layout" },
		{ "system-registers", "/proc/kvintro/registers" },
		{ "efi-runtime-map", "/proc/kvintro/efi-runtime-map" },
		{ "filesystems", "/proc/filesystems" },
		{ "modules", "/proc/modules" },
		{ "slabinfo", "/proc/slabinfo" },
		{ "ptdump/efi", "/sys/kernel/debug/page_tables/efi" },
		{ "ptdump/current_user", "/sys/kernel/debug/page_tables/current_user" },
		{ "ptdump/current_kernel", "/sys/kernel/debug/page_tables/current_kernel" },
		{ "ptdump/kernel", "/sys/kernel/debug/page_tables/kernel" },
		{ "ptdump/tramp", "/proc/kvintro/tramp" },
		{ "ptdump/idmap", "/proc/kvintro/idmap" },
		{ "ptdump/reserved", "/proc/kvintro/reserved" },
		/* arm64: by CONFIG_PTDUMP_DEBUGFS, else by guest/tables.c. */
		{ "ptdump/efi", "/sys/kernel/debug/efi_page_tables" },
		{ "ptdump/efi", "/proc/kvintro/efi" },
		{ "ptdump/kernel", "/sys/kernel/debug/kernel_page_tables" },
		{ "ptdump/kernel", "/proc/kvintro/kernel" },
		{ "page_owner", "/sys/kernel/debug/page_owner" },
		{ "vmallocinfo", "/proc/vmallocinfo" },
		{ "pagetypeinfo", "/proc/pagetypeinfo" },
		{ "zoneinfo", "/proc/zoneinfo" },
		{ "kfence", "/sys/kernel/debug/kfence/objects" },
		{ "swaps", "/proc/swaps" },
		{ "node0/meminfo", "/sys/devices/system/node/node0/meminfo" },
		{ "node1/meminfo", "/sys/devices/system/node/node1/meminfo" },
		{ "kpagecgroup", "/proc/kpagecgroup" },
		{ "kpagecount", "/proc/kpagecount" },
		{ "kpageflags", "/proc/kpageflags" },
		{ "buddyinfo", "/proc/buddyinfo" },
		{ "meminfo", "/proc/meminfo" },
		/* Once more: with nothing read afterwards, what it says must be what the dump has. */
		{ "slabinfo-last", "/proc/slabinfo" },
	};
	char name[64], path[64];

	prepare();
	send_kcore();
	send_processes();
	line("probe", "%d\n", getpid());
	for (size_t i = 0; i < nr_pids; i++) {
		static const char *const each[] = { "maps", "smaps", "status", "numa_maps" };

		for (size_t k = 0; k < ARRAY_SIZE(each); k++) {
			snprintf(name, sizeof(name), "proc/%d/%s", pids[i], each[k]);
			snprintf(path, sizeof(path), "/proc/%d/%s", pids[i], each[k]);
			send_file(name, path);
		}
		send_user_tables(pids[i]);
		send_pagemap(pids[i]);
	}
	for (size_t i = 0; i < ARRAY_SIZE(files); i++) {
		/* The next place for the same file is for guests that do not have the first. */
		if (!send_file(files[i][0], files[i][1]))
			while (i + 1 < ARRAY_SIZE(files) && !strcmp(files[i][0], files[i + 1][0]))
				i++;
	}
	chunk(".", "", 0);
	dprintf(1, "\n%s\n", marker);
	for (;;)
		pause();
}

int main(int argc, char **argv)
{
	if (open_port()) {
		perror("the port");
		return 1;
	}
	if (argc > 2 && !strcmp(argv[1], "truth")) {
		truth(argv[2]);
	} else if (argc > 2 && !strcmp(argv[1], "send")) {
		for (int i = 2; i < argc; i++)
			if (send_file(strrchr(argv[i], '/') ? strrchr(argv[i], '/') + 1 : argv[i], argv[i]))
				perror(argv[i]);
	} else if (argc == 2 && !strcmp(argv[1], "end")) {
		chunk(".", "", 0);
	} else {
		return 2;
	}
	return 0;
}
