/* Rust's standard library takes its random numbers from bcryptprimitives.dll, which every Windows has since 8 and Wine 8
   has not. The same numbers by an older door of the system. */
#include <stddef.h>

__declspec(dllimport) unsigned char __stdcall SystemFunction036(void *bytes, unsigned long length);

__declspec(dllexport) int __stdcall ProcessPrng(unsigned char *bytes, size_t length)
{
    while (length > 0) {
        unsigned long part = length > 0x10000 ? 0x10000 : (unsigned long)length;
        if (!SystemFunction036(bytes, part))
            return 0;
        bytes += part;
        length -= part;
    }
    return 1;
}
