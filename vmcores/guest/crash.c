/* Loads a crash kernel and crashes: crash KERNEL INITRAMFS COMMAND-LINE
 *
 * kexec_file_load(2) adds elfcorehdr= and memmap= itself. What is crashed is the running kernel, which is
 * why this is the last program that it runs.
 */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define KEXEC_FILE_ON_CRASH 2

int main(int argc, char **argv)
{
	int kernel, initramfs, trigger;

	if (argc != 4)
		return 2;
	kernel = open(argv[1], O_RDONLY);
	initramfs = open(argv[2], O_RDONLY);
	trigger = open("/proc/sysrq-trigger", O_WRONLY);
	if (kernel < 0 || initramfs < 0 || trigger < 0) {
		perror("open");
		return 1;
	}
	if (syscall(SYS_kexec_file_load, kernel, initramfs, strlen(argv[3]) + 1, argv[3], KEXEC_FILE_ON_CRASH)) {
		perror("kexec_file_load");
		return 1;
	}
	sync();
	return write(trigger, "c", 1) != 1;
}
