# Both ways into the guest, each a few instructions of ring 0 that end in `iretq` to ring 3.
#
#   PVH (QEMU):            32-bit protected mode, EBX = hvm_start_info
#   Linux 64-bit (lighter): long mode, RSI = zero page
#
# Page tables and segments are data: nothing is computed at run time.

.set CR0_BITS, 0x80000023       # PG, NE, MP, PE
.set CR4_BITS, 0x620            # PAE, OSFXSR, OSXMMEXCPT
.set EFER, 0xc0000080
.set EFER_LME, 0x100
.set KERNEL_CS, 0x10
.set USER_DS, 0x2b
.set USER_CS, 0x33
.set RFLAGS_IOPL3, 0x3202       # ring 3 may use ports; interrupts on, as everywhere in ring 3, and none come

.section .note.pvh, "a", @note
.balign 4
.long 4                         # size of the name
.long 4                         # size of the value
.long 18                        # XEN_ELFNOTE_PHYS32_ENTRY
.asciz "Xen"
.long pvh_entry

.section .text.entry, "ax"
.code32
.globl pvh_entry
pvh_entry:
    cli
    cld
    mov edi, ebx
    mov esi, 1
    mov eax, offset pml4
    mov cr3, eax
    mov eax, CR4_BITS
    mov cr4, eax
    mov ecx, EFER
    rdmsr
    or eax, EFER_LME
    wrmsr
    mov eax, CR0_BITS
    mov cr0, eax
    lgdt [gdt_pointer]
    .byte 0xea                  # far jump
    .long to_ring3
    .word KERNEL_CS

.code64
.globl linux_entry
linux_entry:
    cli
    cld
    mov rdi, rsi
    xor esi, esi
    mov eax, offset pml4
    mov cr3, rax
    mov eax, CR4_BITS
    mov cr4, rax
    mov eax, CR0_BITS
    mov cr0, rax
    lgdt [gdt_pointer]

to_ring3:
    mov eax, USER_DS
    mov ds, eax
    mov es, eax
    mov rsp, offset ring0_stack
    push USER_DS
    push offset ring3_stack - 8   # as if called
    push RFLAGS_IOPL3
    push USER_CS
    push offset main
    iretq

.section .data
.balign 8
gdt:
    .quad 0, 0
    .quad 0x00af9b000000ffff    # 0x10: ring 0 code
    .quad 0x00cf93000000ffff    # 0x18: ring 0 data
    .quad 0
    .quad 0x00cff3000000ffff    # 0x28: ring 3 data
    .quad 0x00affb000000ffff    # 0x30: ring 3 code
gdt_pointer:
    .word 55
    .quad gdt

# All of it belongs to ring 3: bits 0 to 2 are present, writable, user; bit 7 a large page; 3 and 4 uncached.
.balign 4096
pml4:
    .quad pdpt + 7
    .fill 511, 8, 0
pdpt:
    .quad memory + 7
    .quad 0, 0
    .quad mmio + 7
    .fill 508, 8, 0
memory:                         # the first GiB
    .set page, 0
    .rept 512
    .quad page + 0x87
    .set page, page + 0x200000
    .endr
mmio:                           # the GiB below 4 GiB
    .set page, 0xc0000000
    .rept 512
    .quad page + 0x9f
    .set page, page + 0x200000
    .endr

.section .bss
.balign 16
    .skip 256
ring0_stack:
    .skip 65536
ring3_stack:
