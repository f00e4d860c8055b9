// One decoding step on another machine: the memory of a process, mapped at the same addresses.
// emulated MEMORY MODEL ROWS TOKENS POSITIONS VOCABULARY LOGITS; addresses are numbers.
#include "engine/fused.cpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <fstream>

struct Region {
  uint64_t address, bytes, offset;  // offset: in the file
};

int main(int, char **given) {
  std::ifstream memory(given[1], std::ios::binary);
  uint64_t count = 0;
  memory.read((char *)&count, sizeof(count));
  std::vector<Region> regions(count);
  memory.read((char *)regions.data(), count * sizeof(Region));
  const int file = open(given[1], O_RDONLY);
  for (const Region &r : regions) {
    void *place = (void *)r.address;
    const int how = MAP_PRIVATE | MAP_FIXED_NOREPLACE;
    if (mmap(place, r.bytes, PROT_READ | PROT_WRITE, how, file, r.offset) != place) return 1;
  }
  auto number = [&](int i) { return std::stoull(given[i]); };
  const int64_t rows = number(3), vocabulary = number(6);
  std::vector<float> logits(rows * vocabulary);
  culm_decode((const Model *)number(2), rows, (const int64_t *)number(4), (const int64_t *)number(5),
              logits.data(), 2);
  std::ofstream(given[7], std::ios::binary).write((char *)logits.data(), logits.size() * 4);
}
