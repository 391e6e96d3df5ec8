"""The lab: boots real kernels under QEMU and keeps their dumps beside what they said themselves."""
