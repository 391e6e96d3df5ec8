// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * /proc/kvintro/: the page tables and the layout of this kernel, in its own words.
 *
 *     kernel     as kernel_page_tables, which Debian's kernels lack (CONFIG_PTDUMP_DEBUGFS)
 *     efi        as efi_page_tables, when EFI booted the kernel and variables have names
 *     efi-runtime-map  the memory of EFI's runtime services
 *     tramp      the tables that KPTI has in TTBR1 while a process runs
 *     idmap      the tables that are in TTBR0 when the kernel switches the MMU on or off
 *     reserved   the tables that are in TTBR0 when no process may be read
 *     user       the tables of the process whose number was written to the file
 *     layout     macros of this kernel's headers, with their values in this kernel
 *     registers  system registers of the processor that reads the file
 *
 * The page tables are printed by the kernel's own ptdump_walk(). The text goes to a buffer that was
 * allocated before, so that a walk does not change the tables.
 *
 * Debian's kernels of riscv64 do not have that function either. lab/tables.py puts the two files of the kernel's
 * sources that have it beside this one, and they become a part of the module. Of the files above it has
 * kernel and user.
 */
#include <linux/efi.h>
#include <linux/io.h>
#include <linux/kprobes.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/pid.h>
#include <linux/proc_fs.h>
#include <linux/sched/mm.h>
#include <linux/sched/task.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>

#define TEXT_SIZE (4 << 20)

static unsigned long (*lookup)(const char *name);

static DEFINE_MUTEX(one_reader);
static struct seq_file text;
static pid_t user_pid;

#ifdef CONFIG_ARM64

#include <asm/fixmap.h>
#include <asm/memory.h>
#include <asm/ptdump.h>
#include <asm/sysreg.h>

static void (*walk)(struct seq_file *m, struct ptdump_info *info);
static unsigned long swapper;
static struct mm_struct *made_up;	/* an address space that is a root and nothing else */
static u64 *above_idmap;		/* a root whose first entry is idmap_pg_dir */

/* The markers of ptdump_init(): a static variable of that function, so its name ends with a number. */
static const struct addr_marker *own_markers(void)
{
	char name[32];
	unsigned long found = lookup("address_markers");

	for (int i = 0; i < 32 && !found; i++) {
		snprintf(name, sizeof(name), "address_markers.%d", i);
		found = lookup(name);
	}
	return (void *)found;
}

/* Where variables have no names, markers come from the headers, in the order of kernels before 6.9. */
static void walk_kernel(struct seq_file *m)
{
	const struct addr_marker markers[] = {
		{ PAGE_OFFSET, "Linear Mapping start" },
		{ PAGE_END, "Linear Mapping end" },
#ifdef BPF_JIT_REGION_START
		{ BPF_JIT_REGION_START, "BPF start" },
		{ BPF_JIT_REGION_END, "BPF end" },
#endif
		{ MODULES_VADDR, "Modules start" },
		{ MODULES_END, "Modules end" },
		{ VMALLOC_START, "vmalloc() area" },
		{ VMALLOC_END, "vmalloc() end" },
#ifdef FIXADDR_TOT_START
		{ FIXADDR_TOT_START, "Fixmap start" },
#else
		{ FIXADDR_START, "Fixmap start" },
#endif
		{ FIXADDR_TOP, "Fixmap end" },
		{ PCI_IO_START, "PCI I/O start" },
		{ PCI_IO_END, "PCI I/O end" },
		{ VMEMMAP_START, "vmemmap start" },
		{ VMEMMAP_START + VMEMMAP_SIZE, "vmemmap end" },
		{ -1, NULL },
	};
	struct ptdump_info info = { .markers = own_markers(), .base_addr = _PAGE_OFFSET(vabits_actual) };

	made_up->pgd = (pgd_t *)swapper;
	info.mm = (void *)lookup("init_mm");
	info.mm = info.mm ? info.mm : made_up;
	info.markers = info.markers ? info.markers : markers;
	walk(m, &info);
}

static void walk_efi(struct seq_file *m)
{
	static const struct addr_marker markers[] = {
		{ 0, "UEFI runtime start" },
		{ DEFAULT_MAP_WINDOW_64, "UEFI runtime end" },
		{ -1, NULL },
	};
	struct ptdump_info info = { .markers = markers };

	info.mm = (void *)lookup("efi_mm");
	if (info.mm && info.mm->pgd)
		walk(m, &info);
}

static void show_efi_runtime_map(struct seq_file *m)
{
	efi_memory_desc_t *md;

	seq_puts(m, "# attribute num_pages phys_addr type virt_addr\n");
	for_each_efi_memory_desc(md)
		if (md->attribute & EFI_MEMORY_RUNTIME)
			seq_printf(m, "%#llx %#llx %#llx %#x %#llx\n", md->attribute, md->num_pages,
				   md->phys_addr, md->type, md->virt_addr);
}

/* The pages before swapper_pg_dir; see arch/arm64/kernel/vmlinux.lds.S. */
static unsigned long fixed_root(const char *name, int pages_before)
{
	unsigned long found = lookup(name);

	return found ? found : swapper - pages_before * PAGE_SIZE;
}

static void walk_tramp(struct seq_file *m)
{
	static const struct addr_marker markers[] = { { 0, "tramp_pg_dir" }, { -1, NULL } };
	struct ptdump_info info = { .mm = made_up, .markers = markers, .base_addr = _PAGE_OFFSET(vabits_actual) };

	made_up->pgd = (pgd_t *)fixed_root("tramp_pg_dir", 2);
	walk(m, &info);
}

static void walk_idmap(struct seq_file *m)
{
	static const struct addr_marker markers[] = { { 0, "idmap_pg_dir" }, { -1, NULL } };
	struct ptdump_info info = { .mm = made_up, .markers = markers };
#ifdef IDMAP_DIR_SIZE	/* up to 5.19, with all its levels */
	unsigned long root = fixed_root("idmap_pg_dir", 2 + IDMAP_DIR_SIZE / PAGE_SIZE);
#else
	unsigned long root = fixed_root("idmap_pg_dir", 3);
#endif

#ifdef IDMAP_VA_BITS
	/* It is for 48 bits. For other levels than the kernel's, begin one above or below its root. */
	int more = ARM64_HW_PGTABLE_LEVELS(vabits_actual) - IDMAP_LEVELS;

	if (more > 0) {
		*above_idmap = (root - kimage_voffset) | PMD_TYPE_TABLE;
		root = (unsigned long)above_idmap;
	} else if (more < 0) {
		root = (*(u64 *)root & GENMASK(47, PAGE_SHIFT)) + kimage_voffset;
	}
#endif
	made_up->pgd = (pgd_t *)root;
	walk(m, &info);
}

static void walk_reserved(struct seq_file *m)
{
	static const struct addr_marker markers[] = { { 0, "reserved_pg_dir" }, { -1, NULL } };
	struct ptdump_info info = { .mm = made_up, .markers = markers };

	made_up->pgd = (pgd_t *)fixed_root("reserved_pg_dir", 1);
	walk(m, &info);
}

static void walk_process(struct seq_file *m, struct mm_struct *mm)
{
	const struct addr_marker markers[] = { { 0, "user" }, { TASK_SIZE_64, "user end" }, { -1, NULL } };
	struct ptdump_info info = { .mm = mm, .markers = markers };

	walk(m, &info);
}

#define SHOW(name) seq_printf(m, #name " %#lx\n", (unsigned long)(name))

static void show_layout(struct seq_file *m)
{
	SHOW(VA_BITS);
	SHOW(VA_BITS_MIN);
	SHOW(vabits_actual);
	SHOW(PAGE_SIZE);
	SHOW(CONFIG_PGTABLE_LEVELS);
	SHOW(PTRS_PER_PGD);
	SHOW(PGDIR_SHIFT);
	SHOW(PHYS_MASK);
	seq_printf(m, "sizeof_page %#zx\n", sizeof(struct page));
	SHOW(TASK_SIZE_64);
	SHOW(DEFAULT_MAP_WINDOW_64);
	SHOW(PAGE_OFFSET);
	SHOW(PAGE_END);
	SHOW(memstart_addr);
	SHOW(kimage_voffset);
#ifdef CONFIG_KASAN
	SHOW(KASAN_SHADOW_START);
	SHOW(KASAN_SHADOW_END);
#endif
#ifdef BPF_JIT_REGION_START
	SHOW(BPF_JIT_REGION_START);
	SHOW(BPF_JIT_REGION_END);
#endif
	SHOW(MODULES_VADDR);
	SHOW(MODULES_END);
	SHOW(KIMAGE_VADDR);
	SHOW(VMALLOC_START);
	SHOW(VMALLOC_END);
	SHOW(VMEMMAP_START);
#ifdef VMEMMAP_END
	SHOW(VMEMMAP_END);
#endif
	SHOW(VMEMMAP_SIZE);
	SHOW(vmemmap);
	SHOW(PCI_IO_START);
	SHOW(PCI_IO_END);
#ifdef FIXADDR_TOT_START
	SHOW(FIXADDR_TOT_START);
#endif
	SHOW(FIXADDR_START);
	SHOW(FIXADDR_TOP);
#ifdef CONFIG_UNMAP_KERNEL_AT_EL0
	SHOW(TRAMP_VALIAS);
#endif
	SHOW(THREAD_SIZE);
	SHOW(CONT_PTE_SIZE);
	SHOW(CONT_PMD_SIZE);
	SHOW(PMD_SIZE);
	SHOW(swapper);
	seq_printf(m, "init_task %#lx\n", (unsigned long)&init_task);
}

#define REGISTER(name) seq_printf(m, #name " %#018lx\n", (unsigned long)read_sysreg(name))

static void show_registers(struct seq_file *m)
{
	REGISTER(ttbr0_el1);
	REGISTER(ttbr1_el1);
	REGISTER(tcr_el1);
	REGISTER(mair_el1);
	REGISTER(sctlr_el1);
	REGISTER(id_aa64mmfr0_el1);
	REGISTER(id_aa64mmfr1_el1);
	REGISTER(id_aa64mmfr2_el1);
	REGISTER(id_aa64pfr0_el1);
	REGISTER(id_aa64pfr1_el1);
}

static int find_own(void)
{
	walk = (void *)lookup("ptdump_walk");
	made_up = kzalloc(sizeof(*made_up) + cpumask_size(), GFP_KERNEL);
	above_idmap = (u64 *)get_zeroed_page(GFP_KERNEL);
	if (!walk || !made_up || !above_idmap)
		return -ENOENT;
	init_rwsem(&made_up->mmap_lock);
	/* Its address in the kernel image. */
	swapper = (read_sysreg(ttbr1_el1) & GENMASK(47, 1)) + kimage_voffset;
	return 0;
}

#else

#include <linux/debugfs.h>
#include <linux/memory_hotplug.h>
#include <linux/pagewalk.h>

static struct mm_struct *own_mm;
static unsigned long modules_start;
static int (*own_walk)(struct mm_struct *mm, unsigned long start, unsigned long end, const struct mm_walk_ops *ops,
		       pgd_t *pgd, void *private);

/* What these files use and the kernel does not export; lab/tables.py has changed the initial values. */
#define init_mm (*own_mm)
#define walk_page_range_debug own_walk
#define walk_page_range_novma own_walk
#define get_online_mems() do { } while (0)
#define put_online_mems() do { } while (0)
#undef MODULES_VADDR
#define MODULES_VADDR modules_start
#undef CONFIG_EFI
#undef debugfs_create_file
#define debugfs_create_file(...) do { } while (0)
#undef device_initcall
#define device_initcall(function)
#include "mm-ptdump.c"
#include "arch-ptdump.c"

static void walk_kernel(struct seq_file *m)
{
	ptdump_walk(m, &kernel_ptd_info);
}

static void walk_process(struct seq_file *m, struct mm_struct *mm)
{
	const struct addr_marker markers[] = { { 0, "user" }, { TASK_SIZE_64, "user end" }, { -1, NULL } };
	struct ptd_mm_info info = { .mm = mm, .markers = markers, .end = TASK_SIZE_64 };

	ptdump_walk(m, &info);
}

static int __init find_own(void)
{
	own_mm = (void *)lookup("init_mm");
	own_walk = (void *)lookup("walk_page_range_debug");
	own_walk = own_walk ? own_walk : (void *)lookup("walk_page_range_novma");
	modules_start = PFN_ALIGN(lookup("_end")) - SZ_2G;
	if (!own_mm || !own_walk)
		return -ENOENT;
	kernel_ptd_info.mm = own_mm;
	return ptdump_init();
}

#endif

static void walk_user(struct seq_file *m)
{
	struct pid *pid = find_get_pid(user_pid);
	struct task_struct *task = get_pid_task(pid, PIDTYPE_PID);
	struct mm_struct *mm = task ? get_task_mm(task) : NULL;

	if (mm) {
		walk_process(m, mm);
		mmput(mm);
	}
	if (task)
		put_task_struct(task);
	put_pid(pid);
}

static const struct {
	const char *name;
	void (*write)(struct seq_file *m);
} files[] = {
	{ "kernel", walk_kernel },
	{ "user", walk_user },
#ifdef CONFIG_ARM64
	{ "efi", walk_efi },
	{ "efi-runtime-map", show_efi_runtime_map },
	{ "tramp", walk_tramp },
	{ "idmap", walk_idmap },
	{ "reserved", walk_reserved },
	{ "layout", show_layout },
	{ "registers", show_registers },
#endif
};

/* A read from the start makes the text; a later read continues it. */
static ssize_t read_file(struct file *file, char __user *to, size_t size, loff_t *position)
{
	size_t which = (size_t)file->private_data;
	ssize_t n;

	mutex_lock(&one_reader);
	if (!*position) {
		text.count = 0;
		files[which].write(&text);
	}
	n = text.count < text.size ? simple_read_from_buffer(to, size, position, text.buf, text.count) : -E2BIG;
	mutex_unlock(&one_reader);
	return n;
}

static ssize_t write_file(struct file *file, const char __user *from, size_t size, loff_t *position)
{
	int error = kstrtoint_from_user(from, size, 10, &user_pid);

	return error ? error : size;
}

static int open_file(struct inode *inode, struct file *file)
{
	const char *name = file->f_path.dentry->d_name.name;

	for (size_t i = 0; i < ARRAY_SIZE(files); i++)
		if (!strcmp(files[i].name, name)) {
			file->private_data = (void *)i;
			return 0;
		}
	return -ENOENT;
}

static const struct proc_ops operations = {
	.proc_open = open_file,
	.proc_read = read_file,
	.proc_write = write_file,
	.proc_lseek = default_llseek,
};

static int __init tables_init(void)
{
	struct proc_dir_entry *directory;
	int error = -EINVAL;

	/* Where ftrace has its place at the start of each function, a probe may have to be after that. */
	for (unsigned int offset = 0; error && offset < 32; offset += 2) {
		struct kprobe probe = { .symbol_name = "kallsyms_lookup_name", .offset = offset };

		error = register_kprobe(&probe);
		if (!error) {
			lookup = (void *)probe.addr - offset;
			unregister_kprobe(&probe);
		}
	}
	if (error)
		return error;
	error = find_own();
	if (error)
		return error;
	text.size = TEXT_SIZE;
	text.buf = vzalloc(TEXT_SIZE);
	directory = proc_mkdir("kvintro", NULL);
	if (!text.buf || !directory)
		return -ENOENT;
	for (size_t i = 0; i < ARRAY_SIZE(files); i++)
		if ((efi_enabled(EFI_MEMMAP) || strncmp(files[i].name, "efi", 3)) &&
		    !proc_create(files[i].name, 0600, directory, &operations))
			return -ENOMEM;
	return 0;
}
module_init(tables_init);
MODULE_DESCRIPTION("Shows the page tables of the running kernel");
MODULE_LICENSE("GPL");
